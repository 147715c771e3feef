// What one thread holds of a row of logits, in registers: some pairs of neighbours, kStride pairs
// apart. Which thread has an element follows from the number of classes alone, not from the row's
// alignment or type, and so do the bits of its sums.
#pragma once

#include "cuda/arithmetic.h"

namespace flatstep::cuda {
namespace {

template <class T>
struct PairOf {
  using Word = std::uint32_t;
  static __device__ __forceinline__ void split(Word word, float& first, float& second) {
    to_floats<T>(word, first, second);
  }
  static __device__ __forceinline__ Word join(float first, float second) {
    return from_floats<T>(first, second);
  }
};
template <>
struct PairOf<float> {
  struct alignas(8) Word {
    float first, second;
  };
  static __device__ __forceinline__ void split(Word word, float& first, float& second) {
    first = word.first;
    second = word.second;
  }
  static __device__ __forceinline__ Word join(float first, float second) { return {first, second}; }
};

// Whether the elements of a pair can be moved together, all through the row.
template <class T>
__device__ __forceinline__ bool in_pairs(const T* row, int classes) {
  return reinterpret_cast<std::uintptr_t>(row) % (2 * sizeof(T)) == 0 && classes % 2 == 0;
}

// Groups of pairs are passed over where no thread of a block has any.
constexpr int kPairsOfGroup = 4;

// Where the pairs of a thread are: pair k begins at class first + 2 k kStride.
template <int kStride, int kPairs>
struct Pairs {
  int first;
  int own;       // classes from `first` to the end of what the thread's block has
  int of_block;  // the same from the block's first class

  static __device__ __forceinline__ constexpr int offset(int k) { return 2 * k * kStride; }
  __device__ __forceinline__ bool has(int k) const { return offset(k) < own; }
  __device__ __forceinline__ bool has_second(int k) const { return offset(k) + 1 < own; }
  // Of this thread, the pair that has the class; or -1.
  __device__ __forceinline__ int pair_of(std::int64_t index) const {
    const std::int64_t distance = index - first;
    const bool own_class = distance >= 0 && distance < own && distance % (2 * kStride) < 2;
    return own_class ? static_cast<int>(distance / (2 * kStride)) : -1;
  }
};

// Calls visit(k) for the pairs of all groups that somebody has.
template <int kStride, int kPairs, class Visit>
__device__ __forceinline__ void for_each_pair(const Pairs<kStride, kPairs>& pairs,
                                              const Visit& visit) {
#pragma unroll
  for (int group = 0; group < kPairs; group += kPairsOfGroup) {
    if (pairs.offset(group) < pairs.of_block) {
#pragma unroll
      for (int k = group; k < group + kPairsOfGroup; ++k) visit(k);
    }
  }
}

// Where there is no class there is -inf, as if masked.
template <class T, int kStride, int kPairs>
__device__ __forceinline__ void load_slice(const T* row, int classes,
                                           const Pairs<kStride, kPairs>& pairs, float* x) {
  constexpr float kNothing = -kInfinite<float>;
  const T* from = row + pairs.first;
  if (in_pairs(row, classes)) {
    for_each_pair(pairs, [&](int k) {
      x[2 * k] = x[2 * k + 1] = kNothing;
      if (pairs.has(k)) {
        const auto* word =
            reinterpret_cast<const typename PairOf<T>::Word*>(from + pairs.offset(k));
        PairOf<T>::split(*word, x[2 * k], x[2 * k + 1]);
      }
    });
  } else {
    for_each_pair(pairs, [&](int k) {
      x[2 * k] = pairs.has(k) ? to_float(from[pairs.offset(k)]) : kNothing;
      x[2 * k + 1] = pairs.has_second(k) ? to_float(from[pairs.offset(k) + 1]) : kNothing;
    });
  }
}

template <class T, int kStride, int kPairs>
__device__ __forceinline__ void store_slice(T* row, int classes,
                                            const Pairs<kStride, kPairs>& pairs, const float* x) {
  T* to = row + pairs.first;
  if (in_pairs(row, classes)) {
    for_each_pair(pairs, [&](int k) {
      if (pairs.has(k)) {
        *reinterpret_cast<typename PairOf<T>::Word*>(to + pairs.offset(k)) =
            PairOf<T>::join(x[2 * k], x[2 * k + 1]);
      }
    });
  } else {
    for_each_pair(pairs, [&](int k) {
      if (pairs.has(k)) to[pairs.offset(k)] = from_float<T>(x[2 * k]);
      if (pairs.has_second(k)) to[pairs.offset(k) + 1] = from_float<T>(x[2 * k + 1]);
    });
  }
}

// Calls body with a null pointer to the element type.
template <class Body>
__device__ __forceinline__ void with_type(DType dtype, const Body& body) {
  if (dtype == DType::f32) {
    body(static_cast<float*>(nullptr));
  } else if (dtype == DType::bf16) {
    body(static_cast<bf16_bits*>(nullptr));
  } else {
    body(static_cast<f16_bits*>(nullptr));
  }
}

template <int kStride, int kPairs>
__device__ __forceinline__ void load_slice(const void* row, DType dtype, int classes,
                                           const Pairs<kStride, kPairs>& pairs, float* x) {
  with_type(dtype, [&](auto* type) {
    load_slice(static_cast<const std::remove_pointer_t<decltype(type)>*>(row), classes, pairs, x);
  });
}

template <int kStride, int kPairs>
__device__ __forceinline__ void store_slice(void* row, DType dtype, int classes,
                                            const Pairs<kStride, kPairs>& pairs, const float* x) {
  with_type(dtype,
            [&](auto* type) { store_slice(static_cast<decltype(type)>(row), classes, pairs, x); });
}

__device__ __forceinline__ float load_element(const void* row, DType dtype, std::int64_t j) {
  float value = 0;
  with_type(dtype, [&](auto* type) {
    value = to_float(static_cast<decltype(type)>(const_cast<void*>(row))[j]);
  });
  return value;
}

__device__ __forceinline__ void store_element(void* row, DType dtype, std::int64_t j, float value) {
  with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    static_cast<T*>(row)[j] = from_float<T>(value);
  });
}

// exp(x) 2^-k with the reduction of element/exponential.h and the device's power of two: 1.7 ULP.
__device__ __forceinline__ float exp_in_unit(float x, float cutoff, std::uint32_t bias) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = fmaf(x, 1.44269504f, kRound);
  const float n = shifted - kRound;
  float r = fmaf(n, -0.693147182464599609375f, x);
  r = fmaf(n, 1.904654323148236017e-9f, r);
  const float power = float_of((bits_of(shifted) + bias) << 23);  // 2^(n - k)
  const float value = exp2_approx(r * 1.44269504f) * power;
  return keep(at_least(x, cutoff), value);
}

template <int kStride, int kPairs>
__device__ __forceinline__ float largest_of(const Pairs<kStride, kPairs>& pairs, const float* x) {
  float first = -kInfinite<float>, second = first;  // NaN is left out
  for_each_pair(pairs, [&](int k) {
    first = fmaxf(first, x[2 * k]);
    second = fmaxf(second, x[2 * k + 1]);
  });
  return fmaxf(first, second);
}

// Sums over the classes that a thread, a warp, a block or a cluster has; see CrossEntropyBlock.
struct PartSums {
  double rest, weighted, logits, allowed;
  std::int32_t tops, unmasked;  // numbers of largest logits, and of classes not masked
};

__device__ __forceinline__ void add(const PartSums& part, PartSums& sums) {
  sums.rest += part.rest;
  sums.weighted += part.weighted;
  sums.logits += part.logits;
  sums.allowed += part.allowed;
  sums.tops += part.tops;
  sums.unmasked += part.unmasked;
}

__device__ __forceinline__ PartSums sum_over_warp(const PartSums& part) {
  return {warp_sum(part.rest),    warp_sum(part.weighted), warp_sum(part.logits),
          warp_sum(part.allowed), warp_sum(part.tops),     warp_sum(part.unmasked)};
}

// The unit of some logits, and their largest as it is compared with: too large ones are shifted.
struct SliceUnit {
  float shift, top;
  Unit<float> unit;
  __device__ __forceinline__ explicit SliceUnit(float maximum)
      : shift(Unit<float>::in_range(maximum) ? 0.0f : maximum),
        top(Unit<float>::in_range(maximum) ? maximum : 0.0f),
        unit(top) {}
};

// The exponential of the largest logit in its unit.
__device__ __forceinline__ float top_of(float maximum) {
  const SliceUnit in(maximum);
  return exp_in_unit(in.top, in.unit.cutoff(), in.unit.bias());
}

// Puts the exponentials in the logits' place and adds them up. When smoothing, a masked class keeps
// -1, which tells it from one that underflowed.
template <bool kSmooth, int kStride, int kPairs>
__device__ __forceinline__ PartSums sum_slice(float* x, const SliceUnit& in, const float* weights,
                                              const Pairs<kStride, kPairs>& pairs) {
  constexpr float kMasked = -kInfinite<float>;
  if (in.shift != 0) {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) x[i] -= in.shift;
  }
  const float cutoff = in.unit.cutoff();
  const std::uint32_t bias = in.unit.bias();
  const float reference = in.top == kMasked ? 0.0f : in.top;
  const float* own_weights = weights == nullptr ? nullptr : weights + pairs.first;
  float rest[2] = {}, weighted[2] = {}, logits[2] = {}, allowed[2] = {};
  int tops = 0, unmasked = 0;
  const auto add = [&](int k, int half) {
    float& value = x[2 * k + half];
    float e = exp_in_unit(value, cutoff, bias);
    const bool top = value >= in.top;
    rest[half] += top ? 0.0f : e;  // beside the largest the small terms would lose their digits
    tops += top ? 1 : 0;
    const float below = fmaxf(value - reference, -3.0e38f);  // finite: times an e of 0 it is 0
    weighted[half] = fmaf(e, below, weighted[half]);
    if (kSmooth) {
      const bool masked = value == kMasked;
      const float weight = masked                   ? 0.0f
                           : own_weights == nullptr ? 1.0f
                                                    : own_weights[pairs.offset(k) + half];
      logits[half] = fmaf(weight, below, logits[half]);
      allowed[half] += weight;
      unmasked += masked ? 0 : 1;
      e = masked ? -1.0f : e;
    }
    value = e;
  };
  for_each_pair(pairs, [&](int k) {
    add(k, 0);
    add(k, 1);
  });
  const auto both = [](const float (&sums)[2]) {
    return static_cast<double>(sums[0]) + static_cast<double>(sums[1]);
  };
  return {both(rest), both(weighted), both(logits), both(allowed), tops, unmasked};
}

// The block of element/ that these sums are.
__device__ __forceinline__ CrossEntropyBlock block_of(const PartSums& sums, float maximum,
                                                      const SliceUnit& in) {
  CrossEntropyBlock block;
  block.largest = block.maximum = static_cast<double>(maximum);
  block.shift = static_cast<double>(in.shift);
  block.exponent = in.unit.exponent;
  const bool masked = maximum == -kInfinite<float>;
  block.rest = sums.rest;
  block.total = masked ? sums.rest : sums.rest + sums.tops * static_cast<double>(top_of(maximum));
  block.weighted = sums.weighted;
  block.logits = sums.logits;
  block.allowed = sums.allowed;
  block.unmasked = sums.unmasked;
  block.ties = 0;  // see is_first_of_largest in cross_entropy_finish.h
  return block;
}

// What the gradient of a row is made of.
struct GradientFactors {
  float factor, spread;
  float constant;  // of every class, where `is_constant`
  bool is_constant;
};

// From exponentials to the gradient, where they are.
template <bool kSmooth, int kStride, int kPairs>
__device__ __forceinline__ void gradient_slice(float* x, const GradientFactors& gradient,
                                               const float* weights,
                                               const Pairs<kStride, kPairs>& pairs) {
  if (gradient.is_constant) {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) x[i] = gradient.constant;
    return;
  }
  const float* own_weights = weights == nullptr ? nullptr : weights + pairs.first;
  const auto turn = [&](int k, int half) {
    float& value = x[2 * k + half];
    if (!kSmooth) {
      value *= gradient.factor;
      return;
    }
    const bool masked = value == -1.0f;
    float share = gradient.spread;
    if (own_weights != nullptr && !masked) share *= own_weights[pairs.offset(k) + half];
    value = masked ? 0.0f : fmaf(value, gradient.factor, -share);
  };
  for_each_pair(pairs, [&](int k) {
    turn(k, 0);
    turn(k, 1);
  });
}

}  // namespace
}  // namespace flatstep::cuda
