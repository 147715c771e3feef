// A block's part of a row of logits in shared memory. It is copied there in words of 16 bytes where
// the row has them, so it lies as far from such a word's start as in global memory. Sums are taken
// in pairs of classes, thread by thread: which thread has a class follows from the number of
// classes alone, not from the row's alignment or type, and so do the bits of its sums.
#pragma once

#include "cuda/cross_entropy_sums.h"

namespace flatstep::cuda {
namespace {

// Elements x[0, count) of a row, behind them masked ones up to a whole number of tiles, pairs for
// all threads.
template <class T>
struct StagedSlice {
  T* x;
  int count, tiles;

  // `room` is aligned to a word and has one word more than the tiles. The copy goes on until
  // wait_for_copies() and a barrier.
  __device__ __forceinline__ StagedSlice(const T* from, int elements, void* room)
      : x(reinterpret_cast<T*>(static_cast<char*>(room) +
                               reinterpret_cast<std::uintptr_t>(from) % kWordBytes)),
        count(elements),
        tiles((elements + tile() - 1) / tile()) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int to_word = before_word(from);
    const int head = to_word < count ? to_word : count;
    const int words = (count - head) / kOfWord<T>;
    for (int word = thread; word < words; word += threads) {
      const int i = head + word * kOfWord<T>;
      copy_async(x + i, from + i);
    }
    if (thread < head) x[thread] = from[thread];
    const int behind = head + words * kOfWord<T>;
    if (behind + thread < count) x[behind + thread] = from[behind + thread];
    for (int i = count + thread; i < tiles * tile(); i += threads) {
      x[i] = from_float<T>(-kInfinite<float>);
    }
  }

  static __device__ __forceinline__ int tile() { return 2 * static_cast<int>(blockDim.x); }
  // Whether its pairs are aligned as such.
  __device__ __forceinline__ bool paired() const {
    return reinterpret_cast<std::uintptr_t>(x) % (2 * sizeof(T)) == 0;
  }
};

// Calls visit(first element, pair) for the pairs of this thread.
template <bool kPaired, class T, class Visit>
__device__ __forceinline__ void for_each_pair(const StagedSlice<T>& slice, const Visit& visit) {
  using Word = typename PairOf<T>::Word;
  const int step = StagedSlice<T>::tile();
  int i = 2 * static_cast<int>(threadIdx.x);
#pragma unroll 4
  for (int tile = 0; tile < slice.tiles; ++tile, i += step) {
    if (kPaired) {
      visit(i, *reinterpret_cast<const Word*>(slice.x + i));
    } else {
      visit(i, PairOf<T>::join(slice.x[i], slice.x[i + 1]));
    }
  }
}
template <class T, class Visit>
__device__ __forceinline__ void for_each_pair(const StagedSlice<T>& slice, const Visit& visit) {
  if (slice.paired()) {
    for_each_pair<true>(slice, visit);
  } else {
    for_each_pair<false>(slice, visit);
  }
}

// The largest of this thread's logits.
template <class T>
__device__ __forceinline__ float largest_of(const StagedSlice<T>& slice) {
  auto largest =
      PairOf<T>::join(from_float<T>(-kInfinite<float>), from_float<T>(-kInfinite<float>));
  for_each_pair(slice, [&](int, typename PairOf<T>::Word pair) {
    largest = PairOf<T>::larger(largest, pair);
  });
  float first, second;
  PairOf<T>::split(largest, first, second);
  return fmaxf(first, second);
}

// Calls body(shift), which is 0 as a constant where it is.
template <class Body>
__device__ __forceinline__ auto with_shift(const SliceUnit& unit, const Body& body) {
  if (unit.shift != 0) return body([&](float x) { return x - unit.shift; });
  return body([](float x) { return x; });
}

template <bool kSmooth, Largest kLargest, class T>
__device__ __forceinline__ PartSums sum_slice(const StagedSlice<T>& slice, const SliceUnit& unit,
                                              const float* weights) {
  return with_shift(unit, [&](const auto& shifted) {
    ClassSums<kSmooth, kLargest> sums(unit);
    for_each_pair(slice, [&](int i, typename PairOf<T>::Word pair) {
      float first, second;
      PairOf<T>::split(pair, first, second);
      sums.add(0, shifted(first), [&] { return weights == nullptr ? 1.0f : weights[i]; });
      sums.add(1, shifted(second), [&] { return weights == nullptr ? 1.0f : weights[i + 1]; });
    });
    return sums.sums();
  });
}

// `own` is the largest of this thread's logits, `weights` those of the slice or null.
template <bool kSmooth, class T>
__device__ __forceinline__ PartSums sum_slice(const StagedSlice<T>& slice, const SliceUnit& unit,
                                              float own, const float* weights) {
  if (__any_sync(kAllLanes, !(own - unit.shift < unit.top))) {
    return sum_slice<kSmooth, Largest::here>(slice, unit, weights);
  }
  return sum_slice<kSmooth, Largest::elsewhere>(slice, unit, weights);
}

// Eight or four elements at a time where that fills a word of the gradient. `gradient_at(i, x)` is
// the gradient of class i, whose logit is x.
template <class T, class G, class Gradient>
__device__ __forceinline__ void write_gradient(const StagedSlice<T>& slice, G* to,
                                               const Gradient& gradient_at) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int to_word = before_word(to);
  const int head = to_word < slice.count ? to_word : slice.count;
  const int words = (slice.count - head) / kOfWord<G>;
  const auto single = [&](int i) { to[i] = from_float<G>(gradient_at(i, to_float(slice.x[i]))); };
  const bool aligned = reinterpret_cast<std::uintptr_t>(slice.x + head) % kWordBytes == 0;
#pragma unroll 2
  for (int word = thread; word < words; word += threads) {
    const int i = head + word * kOfWord<G>;
    alignas(kWordBytes) typename PairOf<T>::Word logits[kOfWord<G> / 2];
    if (aligned) {
      constexpr int kLoads = static_cast<int>(sizeof logits) / kWordBytes;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        reinterpret_cast<uint4*>(logits)[load] = reinterpret_cast<const uint4*>(slice.x + i)[load];
      }
    } else {
#pragma unroll
      for (int j = 0; j < kOfWord<G> / 2; ++j) {
        logits[j] = PairOf<T>::join(slice.x[i + 2 * j], slice.x[i + 2 * j + 1]);
      }
    }
    alignas(kWordBytes) typename PairOf<G>::Word pairs[kOfWord<G> / 2];
#pragma unroll
    for (int j = 0; j < kOfWord<G> / 2; ++j) {
      float first, second;
      PairOf<T>::split(logits[j], first, second);
      pairs[j] = PairOf<G>::join(gradient_at(i + 2 * j, first), gradient_at(i + 2 * j + 1, second));
    }
    store_streaming(reinterpret_cast<uint4*>(to + i), *reinterpret_cast<const uint4*>(pairs));
  }
  if (thread < head) single(thread);
  const int behind = head + words * kOfWord<G>;
  if (behind + thread < slice.count) single(behind + thread);
}

template <bool kSmooth, class T, class G>
__device__ __forceinline__ void write_gradient(const StagedSlice<T>& slice, const SliceUnit& unit,
                                               const GradientFactors& factors, const float* weights,
                                               G* to) {
  if (factors.is_constant) {
    for (int i = static_cast<int>(threadIdx.x); i < slice.count;
         i += static_cast<int>(blockDim.x)) {
      to[i] = from_float<G>(factors.constant);
    }
    return;
  }
  with_shift(unit, [&](const auto& shifted) {
    write_gradient(slice, to, [&](int i, float x) {
      return gradient_of_class<kSmooth>(marked_exponential<kSmooth>(unit, shifted(x)), factors,
                                        [&] { return weights == nullptr ? 1.0f : weights[i]; });
    });
  });
}

}  // namespace
}  // namespace flatstep::cuda
