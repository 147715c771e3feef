// Logits that cannot be summed where they are, as their distance from the block's maximum: those
// under softcap and those too large for a unit without a shift.
#pragma once

#include <algorithm>

#include "cpu/kernels/cross_entropy_block.h"
#include "element/softcap.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// x - top of each logit, for logits too large for a unit without a shift.
template <class T, class A>
void shift_block(const T* x, std::int64_t size, double top, A* high, A* low) {
#pragma omp simd
  for (std::int64_t j = 0; j < size; ++j) {
    high[j] = Element<T>::load(x[j]) - static_cast<A>(top);
    low[j] = 0;
  }
}

// Whether all logits are so small that capping them takes the polynomial.
template <class A>
bool all_near(const A* x, std::int64_t size, A limit) {
  int far = 0;
#pragma omp simd reduction(| : far)
  for (std::int64_t j = 0; j < size; ++j) far |= x[j] <= limit && -x[j] <= limit ? 0 : 1;
  return far == 0;
}

// Whole vectors of them: y - top as the sum of two numbers, and dy / dx. Unless all are near, some
// may be masked, and stay so.
template <bool kNear, class A>
void cap_stretch(std::int64_t size, Softcap softcap, double top, A* high, A* low, A* slopes) {
  using F = Vector<double>;
  const F minus_infinity = splat<F>(-kInfinite<double>);
  for (std::int64_t j = 0; j < size; j += kLanesOf<double>) {
    const F value = load_double(high + j);
    F slope;
    F y;
    if constexpr (kNear) {
      y = cap_near(value, softcap.cap, slope);
    } else {
      y = cap(value, softcap, slope);
    }
    const F shifted = y - top;
    store_double(high + j, shifted);
    F rest = shifted - load_double(high + j);
    if constexpr (!kNear) {
      const auto masked = value == minus_infinity;
      store_double(high + j, masked ? minus_infinity : shifted);
      rest = masked ? F{} : rest;
      slope = masked ? F{} : slope;
    }
    store_double(low + j, rest);
    store_double(slopes + j, slope);
  }
}

// y - top of each logit under softcap as the sum of two numbers, and dy / dx. The arrays hold a
// whole number of vectors, however many logits there are.
template <class T, class A>
void cap_block(const T* x, std::int64_t size, const Softcap& softcap, double top, A* high, A* low,
               A* slopes) {
  constexpr std::int64_t kStretch = 64;
#pragma omp simd
  for (std::int64_t j = 0; j < size; ++j) high[j] = Element<T>::load(x[j]);
  const std::int64_t lanes = kLanesOf<double>, padded = (size + lanes - 1) / lanes * lanes;
  std::fill(high + size, high + padded, A(0));
  for (std::int64_t j = 0; j < padded; j += kStretch) {
    const std::int64_t count = std::min(kStretch, padded - j);
    prefetch(x + j, kStretch);  // what comes after the block
    if (all_near(high + j, count, static_cast<A>(softcap.limit))) {
      cap_stretch<true>(count, softcap, top, high + j, low + j, slopes + j);
    } else {
      cap_stretch<false>(count, softcap, top, high + j, low + j, slopes + j);
    }
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
