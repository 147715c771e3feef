// Vectors of logits: parts of one, the range of a block, sums over lanes.
#pragma once

#include "cpu/kernels/element.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class T>
using Accumulate = typename Element<T>::Accumulate;

// `size` lanes from p, the others from `rest`.
template <class T, class V>
V load_some(const T* p, std::int64_t size, V rest) {
  using A = Accumulate<T>;
  alignas(kVectorBytes) A lanes[kLanesOf<A>];
  store_vector<A>(lanes, rest);
  for (std::int64_t j = 0; j < size; ++j) lanes[j] = Element<T>::load(p[j]);
  return load_vector<A>(lanes);
}

template <class T, class V>
void store_some(T* p, std::int64_t size, V v) {
  using A = Accumulate<T>;
  alignas(kVectorBytes) A lanes[kLanesOf<A>];
  store_vector<A>(lanes, v);
  for (std::int64_t j = 0; j < size; ++j) p[j] = Element<T>::store(lanes[j]);
}

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
  if (j < size) lanes.take(load_some(x + j, size - j, splat<Vector<A>>(Element<T>::load(x[j]))));
  return lanes.range();
}

// The sum of all lanes, in double.
inline double sum_lanes(Vector<double> a, Vector<double> b) {
  constexpr int kCount = static_cast<int>(kLanesOf<double>);
  alignas(kVectorBytes) double lanes[kCount];
  store_vector<double>(lanes, a + b);
  for (int width = kCount / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

inline double sum_lanes(Vector<float> a, Vector<float> b) {
  alignas(kVectorBytes) float lanes[2][kLanesOf<float>];
  store_vector<float>(lanes[0], a);
  store_vector<float>(lanes[1], b);
  constexpr std::int64_t kHalf = kLanesOf<double>;
  return sum_lanes(load_double(lanes[0]) + load_double(lanes[0] + kHalf),
                   load_double(lanes[1]) + load_double(lanes[1] + kHalf));
}

template <class T>
std::int64_t count_equal(const T* x, std::int64_t size, Accumulate<T> value) {
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < size; ++j) count += Element<T>::load(x[j]) == value ? 1 : 0;
  return count;
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
