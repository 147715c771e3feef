// Vectors of logits: the range of a block, sums over lanes.
#pragma once

#include "cpu/kernels/element.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class T>
using Accumulate = typename Element<T>::Accumulate;

// Of some logits; NaN is left out.
template <class A>
struct Range {
  A largest, smallest;
};

// Without kSmallest, `smallest` means nothing.
template <class T, bool kSmallest = true>
struct RangeLanes {
  using A = Accumulate<T>;
  using V = Vector<A>;
  V largest = splat<V>(-kInfinite<A>), smallest = splat<V>(kInfinite<A>);

  void take(V v) {
    largest = larger(v, largest);
    if (kSmallest) smallest = smaller(v, smallest);
  }
  void take(const RangeLanes& other) {
    largest = larger(other.largest, largest);
    if (kSmallest) smallest = smaller(other.smallest, smallest);
  }
  Range<A> range() const {
    alignas(kVectorBytes) A lanes[kLanesOf<A>];
    store_vector<A>(lanes, largest);
    A high = lanes[0];
#pragma omp simd reduction(max : high)
    for (int i = 0; i < kLanesOf<A>; ++i) high = lanes[i] > high ? lanes[i] : high;
    if (!kSmallest) return {high, high};
    store_vector<A>(lanes, smallest);
    A low = lanes[0];
#pragma omp simd reduction(min : low)
    for (int i = 0; i < kLanesOf<A>; ++i) low = lanes[i] < low ? lanes[i] : low;
    return {high, low};
  }
};

template <class T>
Range<Accumulate<T>> range_of(const T* x, std::int64_t size) {
  using A = Accumulate<T>;
  constexpr std::int64_t kLanes = kLanesOf<A>;
  RangeLanes<T> lanes;
  std::int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) lanes.take(Element<T>::load_lanes(x + j));
  if (j < size)
    lanes.take(Element<T>::load_some(x + j, size - j, splat<Vector<A>>(Element<T>::load(x[j]))));
  return lanes.range();
}

// The lanes as doubles, those of the upper half of a vector of float added to the lower.
inline Vector<double> in_double(Vector<double> v) { return v; }
inline Vector<double> in_double(Vector<float> v) {
  Vector<double> halves[2];
  split_double(v, halves);
  return halves[0] + halves[1];
}

// The sums of all lanes, each step adding halves of what is left.
template <int kCount>
void sum_lanes(const Vector<double> (&v)[kCount], double (&sums)[kCount]) {
  constexpr int kLanes = static_cast<int>(kLanesOf<double>);
  for (int i = 0; i < kCount; ++i) {
    alignas(kVectorBytes) double lanes[kLanes];
    store_vector<double>(lanes, v[i]);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    }
    sums[i] = lanes[0];
  }
}

#if defined(__AVX512F__)
// The same for four at once.
inline void sum_lanes(const Vector<double> (&v)[4], double (&sums)[4]) {
  const auto fold = [](__m512d a, __m512d b) {
    return _mm512_maskz_shuffle_f64x2(0xff, a, b, 0x44) +
           _mm512_maskz_shuffle_f64x2(0xff, a, b, 0xee);
  };
  const __m512d a = fold(v[0], v[1]), b = fold(v[2], v[3]);
  const __m512d pairs =
      _mm512_maskz_shuffle_f64x2(0xff, a, b, 0x88) + _mm512_maskz_shuffle_f64x2(0xff, a, b, 0xdd);
  const __m512d all = pairs + _mm512_maskz_permute_pd(0xff, pairs, 0x55);
  constexpr Vector<std::uint64_t> kEven = {0, 2, 4, 6, 0, 2, 4, 6};
  const __m512d even = _mm512_maskz_permutexvar_pd(0xff, (__m512i)kEven, all);
  std::memcpy(sums, &even, sizeof sums);
}
#endif

template <class T>
std::int64_t count_equal(const T* x, std::int64_t size, Accumulate<T> value) {
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < size; ++j) count += Element<T>::load(x[j]) == value ? 1 : 0;
  return count;
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
