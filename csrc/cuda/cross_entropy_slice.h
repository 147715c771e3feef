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

// The larger; NaN if x is.
__device__ __forceinline__ float at_least_or_nan(float x, float limit) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(limit));
  return result;
#else
  return x < limit ? limit : x;
#endif
}

// The unit of some logits (see Unit) and their largest: too large ones are shifted first.
struct SliceUnit {
  float shift, top;
  std::int32_t exponent;
  float magic;  // adding it to x / ln2 rounds to an integer, and leaves 127 + n - k in the low bits
  float lowest;  // logits below it count as it, and their exponentials as 0

  __device__ __forceinline__ explicit SliceUnit(float maximum)
      : shift(Unit<float>::in_range(maximum) ? 0.0f : maximum),
        top(Unit<float>::in_range(maximum) ? maximum : 0.0f),
        exponent(Unit<float>(top).exponent),
        magic(12582912.0f + 127.0f - static_cast<float>(exponent)),
        lowest(static_cast<float>((exponent - 127.0) * kLn2High)) {}

  // x / ln2 = n + t with |t| <= 1/2, the product exact to twice the precision, then 2^t by the
  // device and 2^(n - k) by its bits, which are those of 0 at the lowest logit. Error 1.7 ULP.
  __device__ __forceinline__ float exponential(float x) const {
    constexpr float kLog2High = 1.442695040f, kLog2Low = 1.925963033e-8f;  // of e
    const float shifted = fmaf(x, kLog2High, magic);
    const float n = shifted - magic;
    const float t = fmaf(x, kLog2Low, fmaf(x, kLog2High, -n));
    return exp2_approx(t) * float_of(bits_of(shifted) << 23);
  }
};

// The exponential of the largest logit in its unit.
__device__ __forceinline__ float top_of(float maximum) {
  const SliceUnit in(maximum);
  return in.exponential(at_least_or_nan(in.top, in.lowest));
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

// Whether a thread's warp has the largest logit of the row, or one of them: others take a shorter
// loop.
enum class Largest { here, elsewhere };

// Puts the exponentials in the logits' place and adds them up. When smoothing, a masked class keeps
// -1, which tells it from one that underflowed.
template <bool kSmooth, Largest kLargest, int kStride, int kPairs>
__device__ __forceinline__ PartSums sum_slice(float* x, const SliceUnit& in, const float* weights,
                                              const Pairs<kStride, kPairs>& pairs) {
  constexpr float kMasked = -kInfinite<float>;
  const float reference = in.top == kMasked ? 0.0f : in.top;
  const float* own_weights = weights == nullptr ? nullptr : weights + pairs.first;
  float rest[2] = {}, weighted[2] = {}, logits[2] = {}, allowed[2] = {};
  int tops = 0, unmasked = 0;
  const auto add = [&](int k, int half) {
    float& value = x[2 * k + half];
    const float logit = value;
    // Finite but for NaN, so that times an exponential of 0 its distance is 0.
    const float clamped = at_least_or_nan(logit, in.lowest);
    const float e = in.exponential(clamped);
    if (kLargest == Largest::here) {
      const bool top = logit >= in.top;
      if (!top) rest[half] += e;  // beside the largest the small terms would lose their digits
      tops += top ? 1 : 0;
    } else {
      rest[half] += e;
    }
    weighted[half] = fmaf(e, clamped - reference, weighted[half]);
    value = e;
    if (kSmooth) {
      const bool masked = logit == kMasked;
      const float weight = masked                   ? 0.0f
                           : own_weights == nullptr ? 1.0f
                                                    : own_weights[pairs.offset(k) + half];
      logits[half] = fmaf(weight, masked ? 0.0f : logit - reference, logits[half]);
      allowed[half] += weight;
      unmasked += masked ? 0 : 1;
      value = masked ? -1.0f : e;
    }
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

// `own` is the largest of this thread's logits.
template <bool kSmooth, int kStride, int kPairs>
__device__ __forceinline__ PartSums sum_slice(float* x, const SliceUnit& in, float own,
                                              const float* weights,
                                              const Pairs<kStride, kPairs>& pairs) {
  if (in.shift != 0) {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) x[i] -= in.shift;
    own -= in.shift;
  }
  if (__any_sync(kAllLanes, !(own < in.top))) {
    return sum_slice<kSmooth, Largest::here>(x, in, weights, pairs);
  }
  return sum_slice<kSmooth, Largest::elsewhere>(x, in, weights, pairs);
}

// The block of element/ that these sums are.
__device__ __forceinline__ CrossEntropyBlock block_of(const PartSums& sums, float maximum,
                                                      const SliceUnit& in) {
  CrossEntropyBlock block;
  block.largest = block.maximum = static_cast<double>(maximum);
  block.shift = static_cast<double>(in.shift);
  block.exponent = in.exponent;
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
