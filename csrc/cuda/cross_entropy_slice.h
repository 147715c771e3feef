// What one thread holds of a row of logits, in registers: some pairs of neighbours, kStride pairs
// apart. Which thread has an element follows from the number of classes alone, not from the row's
// alignment or type, and so do the bits of its sums.
#pragma once

#include "cuda/cross_entropy_sums.h"

namespace flatstep::cuda {
namespace {

// Whether the elements of a pair can be moved together, all through the row.
template <class T>
__device__ __forceinline__ bool in_pairs(const T* row, int classes) {
  return reinterpret_cast<std::uintptr_t>(row) % (2 * sizeof(T)) == 0 && classes % 2 == 0;
}

// Groups of pairs are passed over where no thread of the warp has any.
constexpr int kPairsOfGroup = 4;

// Where the pairs of a thread are: pair k begins at class first + 2 k kStride.
template <int kStride, int kPairs>
struct Pairs {
  int first;
  int own;      // classes from `first` to the end of what the thread's warp has
  int of_warp;  // the same from the warp's first class

  static __device__ __forceinline__ constexpr int offset(int k) { return 2 * k * kStride; }
  __device__ __forceinline__ bool has(int k) const { return offset(k) < own; }
  __device__ __forceinline__ bool has_second(int k) const { return offset(k) + 1 < own; }
};

// Calls visit(k) for the pairs of all groups that somebody has.
template <int kStride, int kPairs, class Visit>
__device__ __forceinline__ void for_each_pair(const Pairs<kStride, kPairs>& pairs,
                                              const Visit& visit) {
#pragma unroll
  for (int group = 0; group < kPairs; group += kPairsOfGroup) {
    if (pairs.offset(group) < pairs.of_warp) {
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

template <int kStride, int kPairs>
__device__ __forceinline__ float largest_of(const Pairs<kStride, kPairs>& pairs, const float* x) {
  float first = -kInfinite<float>, second = first;  // NaN is left out
  for_each_pair(pairs, [&](int k) {
    first = fmaxf(first, x[2 * k]);
    second = fmaxf(second, x[2 * k + 1]);
  });
  return fmaxf(first, second);
}

// Puts what ClassSums::add() returns in the logits' place and adds it up.
template <Sums kSums, Largest kLargest, int kStride, int kPairs>
__device__ __forceinline__ PartSums sum_slice(float* x, const SliceUnit& in, const float* weights,
                                              const Pairs<kStride, kPairs>& pairs) {
  const float* own_weights = weights == nullptr ? nullptr : weights + pairs.first;
  ClassSums<kSums, kLargest> sums(in);
  for_each_pair(pairs, [&](int k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& value = x[2 * k + half];
      value = sums.add(half, value, [&] {
        return own_weights == nullptr ? 1.0f : own_weights[pairs.offset(k) + half];
      });
    }
  });
  return sums.sums();
}

// `own` is the largest of this thread's logits.
template <Sums kSums, int kStride, int kPairs>
__device__ __forceinline__ PartSums sum_slice(float* x, const SliceUnit& in, float own,
                                              const float* weights,
                                              const Pairs<kStride, kPairs>& pairs) {
  if (in.shift != 0) {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) x[i] -= in.shift;
    own -= in.shift;
  }
  if (__any_sync(kAllLanes, !(own < in.top))) {
    return sum_slice<kSums, Largest::here>(x, in, weights, pairs);
  }
  return sum_slice<kSums, Largest::elsewhere>(x, in, weights, pairs);
}

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
  for_each_pair(pairs, [&](int k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& value = x[2 * k + half];
      value = gradient_of_class<kSmooth>(value, gradient, [&] {
        const bool none = own_weights == nullptr || value == -1.0f;
        return none ? 1.0f : own_weights[pairs.offset(k) + half];
      });
    }
  });
}

}  // namespace
}  // namespace flatstep::cuda
