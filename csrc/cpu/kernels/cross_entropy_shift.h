// Logits that cannot be summed where they are, as their distance from the block's maximum: those
// under softcap and those too large for a unit without a shift.
#pragma once

#include <algorithm>

#include "cpu/kernels/cross_entropy_lanes.h"
#include "element/exponential.h"

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

// y - top of each logit under softcap as the sum of two numbers, and dy / dx. A masked class stays
// masked. The arrays hold a whole number of vectors, however many logits there are.
template <class T, class A>
void cap_block(const T* x, std::int64_t size, double softcap, double top, A* high, A* low,
               A* slopes) {
  using F = Vector<double>;
  const F minus_infinity = splat<F>(-kInfinite<double>);
  for (std::int64_t j = 0; j < size; ++j) high[j] = Element<T>::load(x[j]);
  std::fill(high + size, high + (size + kLanesOf<double> - 1) / kLanesOf<double> * kLanesOf<double>,
            A(0));
  for (std::int64_t j = 0; j < size; j += kLanesOf<double>) {
    const F value = load_double(high + j);
    F slope;
    const F shifted = cap(value, softcap, slope) - top;
    store_double(high + j, shifted);
    const F rounded = load_double(high + j);
    store_double(high + j, value == minus_infinity ? minus_infinity : shifted);
    store_double(low + j, value == minus_infinity ? F{} : shifted - rounded);
    store_double(slopes + j, value == minus_infinity ? F{} : slope);
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
