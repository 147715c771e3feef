// Powers with whole exponents, with the same bits on every device, which pow() has not.
#pragma once

#include "element/factor.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// high + low, to twice the precision: |low| is at most half an ulp of high.
struct DoubleDouble {
  double high, low;
};

FLATSTEP_ELEMENT DoubleDouble with_low(double high, double low) {
  const double sum = high + low;
  return {sum, low - (sum - high)};
}

// a * a and a * b, without low * low, which is too small to count.
FLATSTEP_ELEMENT DoubleDouble squared(DoubleDouble a) {
  const double high = a.high * a.high;
  return with_low(high, fused(a.high, a.high, -high) + 2.0 * a.high * a.low);
}
FLATSTEP_ELEMENT DoubleDouble times(DoubleDouble a, double b) {
  const double high = a.high * b;
  return with_low(high, fused(a.high, b, -high) + a.low * b);
}

// base^exponent for 0 <= base <= 1 and exponent >= 0, bit by bit of the exponent from the top. The
// relative error stays below exponent 2^-102 before the one rounding, above 1e-290; what is below
// is lost beside 1.
FLATSTEP_ELEMENT double power(double base, std::int64_t exponent) {
  if (exponent == 0) return 1.0;
  int bit = 62;
  while ((exponent >> bit & 1) == 0) --bit;
  DoubleDouble result{base, 0.0};
  while (--bit >= 0) {
    result = squared(result);
    if (exponent >> bit & 1) result = times(result, base);
  }
  return result.high;
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
