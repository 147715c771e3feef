// What a block has of a row of logits, in shared memory. It is copied there in words of 16 bytes
// where the row has them, so it lies as far from such a word's start as in global memory. A warp
// sums a stretch of it, tile by tile, in pairs of classes: which lane has a class follows from the
// number of classes alone, not from the row's alignment or type, and so do the bits of its sums.
#pragma once

#include "cuda/cross_entropy_sums.h"

namespace flatstep::cuda {
namespace {

// Calls visit(word) for the words of this thread, kTogether of which lie at fixed distances.
template <int kTogether, class Visit>
__device__ __forceinline__ void for_each_word(int words, const Visit& visit) {
  int word = warp() * kTogether * kWarp + lane();
  const int step = static_cast<int>(blockDim.x) * kTogether;
  for (; word + (kTogether - 1) * kWarp < words; word += step) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) visit(word + i * kWarp);
  }
#pragma unroll 1
  for (; word < words; word += kWarp) visit(word);
}

// Elements x[0, count) of a row, behind them masked ones up to the end of a tile.
template <class T>
struct StagedSlice {
  T* x;
  int count;

  // `room` is aligned to a word and has one word more than the tiles. The copy goes on until
  // wait_for_copies() and a barrier.
  __device__ __forceinline__ StagedSlice(const T* from, int elements, void* room)
      : x(reinterpret_cast<T*>(static_cast<char*>(room) +
                               reinterpret_cast<std::uintptr_t>(from) % kWordBytes)),
        count(elements) {
    const int thread = static_cast<int>(threadIdx.x);
    const int to_word = before_word(from);
    const int head = to_word < count ? to_word : count;
    const int words = (count - head) / kOfWord<T>;
    for_each_word<4>(words, [&](int word) {
      copy_async(x + head + word * kOfWord<T>, from + head + word * kOfWord<T>);
    });
    if (thread < head) x[thread] = from[thread];
    const int behind = head + words * kOfWord<T>;
    if (behind + thread < count) x[behind + thread] = from[behind + thread];
    for (int i = count + thread; i < tiles() * RowShape::kTile; i += static_cast<int>(blockDim.x)) {
      x[i] = from_float<T>(-kInfinite<float>);
    }
  }

  __device__ __forceinline__ int tiles() const {
    return (count + RowShape::kTile - 1) / RowShape::kTile;
  }
  // Whether its pairs are aligned as such.
  __device__ __forceinline__ bool paired() const {
    return reinterpret_cast<std::uintptr_t>(x) % (2 * sizeof(T)) == 0;
  }
};

// Tiles [first, first + count) of a slice, those of a warp.
struct WarpTiles {
  int first, count;

  // Of `most` for each warp of the block, in their order.
  template <class T>
  __device__ __forceinline__ WarpTiles(const StagedSlice<T>& slice, int most)
      : first(warp() * most), count(slice.tiles() - first) {
    count = count < 0 ? 0 : count < most ? count : most;
  }
};

// Two neighbours of a slice, aligned as a pair or not.
template <bool kPaired, class T>
struct StagedPair {
  const T* x;

  __device__ __forceinline__ typename PairOf<T>::Word word() const {
    if (kPaired) return *reinterpret_cast<const typename PairOf<T>::Word*>(x);
    return PairOf<T>::join(x[0], x[1]);
  }
  __device__ __forceinline__ void split(float& first, float& second) const {
    if (kPaired) {
      PairOf<T>::split(word(), first, second);
    } else {
      first = to_float(x[0]);
      second = to_float(x[1]);
    }
  }
};

// Calls visit(element, pair) for the pairs of this lane.
template <bool kPaired, class T, class Visit>
__device__ __forceinline__ void for_each_pair(const StagedSlice<T>& slice, const WarpTiles& tiles,
                                              const Visit& visit) {
  int i = tiles.first * RowShape::kTile + 2 * lane();
  const T* x = slice.x + i;
#pragma unroll 4
  for (int tile = 0; tile < tiles.count; ++tile, i += RowShape::kTile, x += RowShape::kTile) {
    visit(i, StagedPair<kPaired, T>{x});
  }
}
template <class T, class Visit>
__device__ __forceinline__ void for_each_pair(const StagedSlice<T>& slice, const WarpTiles& tiles,
                                              const Visit& visit) {
  if (slice.paired()) {
    for_each_pair<true>(slice, tiles, visit);
  } else {
    for_each_pair<false>(slice, tiles, visit);
  }
}

// The largest of this lane's logits.
template <class T>
__device__ __forceinline__ float largest_of(const StagedSlice<T>& slice, const WarpTiles& tiles) {
  auto largest =
      PairOf<T>::join(from_float<T>(-kInfinite<float>), from_float<T>(-kInfinite<float>));
  for_each_pair(slice, tiles,
                [&](int, const auto& pair) { largest = PairOf<T>::larger(largest, pair.word()); });
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

template <Sums kSums, Largest kLargest, class T>
__device__ __forceinline__ PartSums sum_slice(const StagedSlice<T>& slice, const WarpTiles& tiles,
                                              const SliceUnit& unit, const float* weights) {
  return with_shift(unit, [&](const auto& shifted) {
    ClassSums<kSums, kLargest> sums(unit);
    for_each_pair(slice, tiles, [&](int i, const auto& pair) {
      float first, second;
      pair.split(first, second);
      sums.add(0, shifted(first), [&] { return weights == nullptr ? 1.0f : weights[i]; });
      sums.add(1, shifted(second), [&] { return weights == nullptr ? 1.0f : weights[i + 1]; });
    });
    return sums.sums();
  });
}

// `own` is the largest of this lane's logits, `weights` those of the slice or null.
template <Sums kSums, class T>
__device__ __forceinline__ PartSums sum_slice(const StagedSlice<T>& slice, const WarpTiles& tiles,
                                              const SliceUnit& unit, float own,
                                              const float* weights) {
  if (__any_sync(kAllLanes, !(own - unit.shift < unit.top))) {
    return sum_slice<kSums, Largest::here>(slice, tiles, unit, weights);
  }
  return sum_slice<kSums, Largest::elsewhere>(slice, tiles, unit, weights);
}

// Eight or four elements at a time where that fills a word of the gradient. `gradient_at(i, x)` is
// the gradient of class i, whose logit is x.
template <bool kAligned, class T, class G, class Gradient>
__device__ __forceinline__ void write_words(const T* x, int first, int words, G* to,
                                            const Gradient& gradient_at) {
  for_each_word<16 / kOfWord<G>>(words, [&](int word) {
    const int i = first + word * kOfWord<G>;
    alignas(kWordBytes) typename PairOf<T>::Word logits[kOfWord<G> / 2];
    if (kAligned) {
      constexpr int kLoads = static_cast<int>(sizeof logits) / kWordBytes;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        reinterpret_cast<uint4*>(logits)[load] = reinterpret_cast<const uint4*>(x + i)[load];
      }
    } else {
#pragma unroll
      for (int j = 0; j < kOfWord<G> / 2; ++j) {
        logits[j] = PairOf<T>::join(x[i + 2 * j], x[i + 2 * j + 1]);
      }
    }
    alignas(kWordBytes) typename PairOf<G>::Word pairs[kOfWord<G> / 2];
#pragma unroll
    for (int j = 0; j < kOfWord<G> / 2; ++j) {
      float one, other;
      PairOf<T>::split(logits[j], one, other);
      pairs[j] = PairOf<G>::join(gradient_at(i + 2 * j, one), gradient_at(i + 2 * j + 1, other));
    }
    store_streaming(reinterpret_cast<uint4*>(to + i), *reinterpret_cast<const uint4*>(pairs));
  });
}

template <class T, class G, class Gradient>
__device__ __forceinline__ void write_gradient(const StagedSlice<T>& slice, G* to,
                                               const Gradient& gradient_at) {
  const int thread = static_cast<int>(threadIdx.x);
  const int to_word = before_word(to);
  const int head = to_word < slice.count ? to_word : slice.count;
  const int words = (slice.count - head) / kOfWord<G>;
  const auto single = [&](int i) { to[i] = from_float<G>(gradient_at(i, to_float(slice.x[i]))); };
  if (reinterpret_cast<std::uintptr_t>(slice.x + head) % kWordBytes == 0) {
    write_words<true>(slice.x, head, words, to, gradient_at);
  } else {
    write_words<false>(slice.x, head, words, to, gradient_at);
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
