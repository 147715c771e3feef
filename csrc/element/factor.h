// Factors and divisors of many numbers, prepared in double.
#pragma once

#include "core/tasks.h"
#include "element/number.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// A factor as two of the type, so that neither is subnormal: it may be too small for one float
// though the products are not.
template <class T>
FLATSTEP_ELEMENT void split_factor(double factor, T (&parts)[2]) {
  constexpr double kSmall = 0x1p-64, kLarge = 0x1p126;
  const double magnitude = factor < 0 ? -factor : factor;
  parts[0] = T(1);
  if (magnitude < kSmall) parts[0] = static_cast<T>(kSmall);
  if (magnitude > kLarge) parts[0] = static_cast<T>(kLarge);
  // An infinite factor would make something of zeros.
  const double most = static_cast<double>(kLargest<T>);
  const double rest = factor / static_cast<double>(parts[0]);
  parts[1] = static_cast<T>(rest < -most ? -most : rest > most ? most : rest);
}

// Rounded once on every machine, by the library where the processor has no such instruction: for
// what is computed once a step.
FLATSTEP_ELEMENT float fused(float a, float b, float c) { return fmaf(a, b, c); }
FLATSTEP_ELEMENT double fused(double a, double b, double c) { return fma(a, b, c); }

template <class T>
FLATSTEP_ELEMENT Divisor<T> divisor_of(double number) {
  const T value = static_cast<T>(number);
  const T reciprocal = T(1) / value;
  return {value, reciprocal, fused(-reciprocal, value, T(1)) / value};
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
