// Exponentials and logarithms, branch-free, so that compilers vectorise the loops around them.
#pragma once

#include "element/number.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// sum * r + constant
template <class F, class T>
FLATSTEP_ELEMENT F horner(F sum, F r, T constant) {
  return multiply_add(sum, r, splat<F>(constant));
}

// 2^-k exp(x), with `bias` = 127 - k, so that x needs no shift that would round it: the exponent of
// the result carries the shift. (k - 125.5) ln2 <= x < (k + 127) ln2; NaN stays.
// Range reduction x = n ln2 + r (Cody & Waite), |r| <= ln2 / 2, exact up to |x| = 2^14 but for the
// last product; the polynomial 1 + r + r^2 q(r), with q a degree-4 Chebyshev fit, off by 1e-8 at
// most. Error below 1.2 ULP. F is float or Vector<float>.
template <class F>
FLATSTEP_ELEMENT F scaled_exp(F x, std::uint32_t bias) {
  // Adding 1.5 * 2^23 rounds to an integer, and the bias with it makes the exponent of the result.
  const F round = splat<F>(12582912.0f + static_cast<float>(static_cast<std::int32_t>(bias)));
  const F shifted = multiply_add(x, splat<F>(1.44269504f), round);
  const F n = shifted - round;
#if FLATSTEP_HAS_FMA
  F r = multiply_add(n, splat<F>(-0.693147182464599609375f), x);
#else  // in three parts, the first two with few enough digits that n times them is exact
  F r = x - n * 0.693359375f;
  r = r + n * 2.1219253540039062e-4f;
#endif
  r = multiply_add(n, splat<F>(1.904654323148236017e-9f), r);
  // The polynomial in two halves (Estrin): fewer steps that wait for each other.
  const F square = r * r;
  const F low = horner(splat<F>(1.6666576e-1f), r, 0.5f);
  const F high = horner(splat<F>(8.3631817e-3f), r, 4.1666467e-2f);
  const F poly = multiply_add(multiply_add(splat<F>(1.3933652e-3f), square, high), square, low);
  // exp(r) = 1 + (r + r^2 * poly), the small part first so that the last addition rounds once.
  const F tail = multiply_add(square, poly, r);
  const F power = float_of(bits_of(shifted) << 23);  // 2^(n - k)
  return multiply_add(tail, power, power);
}

// ln2 in two parts; the first has 32 bits, so that products with integers below 2^20 are exact.
constexpr double kLn2High = 6.93147180369123816490e-01;
constexpr double kLn2Low = 1.90821492927058770002e-10;

// The same in double, as power (1 + tail): the Taylor series to degree 13.
template <class F>
FLATSTEP_ELEMENT void exp_parts(F x, std::uint64_t bias, F& power, F& tail) {
  // 1.5 * 2^52 and the bias
  const F round =
      splat<F>(6755399441055744.0 + static_cast<double>(static_cast<std::int64_t>(bias)));
  const F shifted = multiply_add(x, splat<F>(1.4426950408889634), round);
  const F n = shifted - round;
  F r = multiply_add(n, splat<F>(-kLn2High), x);
  r = multiply_add(n, splat<F>(-kLn2Low), r);
  F poly = horner(splat<F>(1.0 / 6227020800.0), r, 1.0 / 479001600.0);
  poly = horner(poly, r, 1.0 / 39916800.0);
  poly = horner(poly, r, 1.0 / 3628800.0);
  poly = horner(poly, r, 1.0 / 362880.0);
  poly = horner(poly, r, 1.0 / 40320.0);
  poly = horner(poly, r, 1.0 / 5040.0);
  poly = horner(poly, r, 1.0 / 720.0);
  poly = horner(poly, r, 1.0 / 120.0);
  poly = horner(poly, r, 1.0 / 24.0);
  poly = horner(poly, r, 1.0 / 6.0);
  poly = horner(poly, r, 0.5);
  tail = multiply_add(r * r, poly, r);
  power = float_of(bits_of(shifted) << 52);
}

// As above, with `bias` = 1023 - k and x >= (k - 1021.5) ln2. F is double or Vector<double>.
template <class F>
FLATSTEP_ELEMENT F scaled_exp(F x, std::uint64_t bias) {
  F power, tail;
  exp_parts(x, bias, power, tail);
  return multiply_add(tail, power, power);
}

// 0 below `cutoff`, which is no less than the lowest x of the above.
template <class F, class Bits>
FLATSTEP_ELEMENT F scaled_exp(F x, F cutoff, Bits bias) {
  return keep(at_least(x, cutoff), scaled_exp(x, bias));  // also where scaled_exp overflowed
}

// exp(x) and exp(x) - 1 for x <= 0, the latter without the cancellation near 0.
template <class F>
FLATSTEP_ELEMENT void exp_and_less_one(F x, F& value, F& less_one) {
  const F lowest = splat<F>(-708.0);
  F power, tail;
  exp_parts(lowest > x ? lowest : x, std::uint64_t{1023}, power, tail);
  value = x < lowest ? F{} : multiply_add(power, tail, power);
  less_one = multiply_add(power, tail, power - 1.0);
}

// log(1 + x) for x >= 0, and for x = f - 1 with a float32 f of 2^-20 or more. With 1 + x = 2^k m
// and m in [sqrt(1/2), sqrt(2)): log m = 2 atanh(s), s = (m - 1) / (m + 1), by its Taylor series;
// what rounding 1 + x lost is added to first order. Error below 2 ULP.
template <class F>
FLATSTEP_ELEMENT F log1p_nonnegative(F x) {
  constexpr std::uint64_t kRootHalf = 0x3fe6a09e667f3bcdu;  // sqrt(1/2)
  const F sum = x + 1.0;
  const F lost = (x - (sum - 1.0)) / sum;
  // Adding the distance from sqrt(1/2) to 1 carries into the exponent where m would exceed sqrt(2).
  const auto shifted = bits_of(sum) + (0x3ff0000000000000u - kRootHalf);
  // The biased exponent in the last digits of 2^52.
  const F k = float_of((shifted >> 52) | 0x4330000000000000u) - (0x1p52 + 1023.0);
  const F m = float_of((shifted & 0x000fffffffffffffu) + kRootHalf);
  const F s = (m - 1.0) / (m + 1.0);
  const F z = s * s;
  F series = horner(splat<F>(2.0 / 21.0), z, 2.0 / 19.0);
  series = horner(series, z, 2.0 / 17.0);
  series = horner(series, z, 2.0 / 15.0);
  series = horner(series, z, 2.0 / 13.0);
  series = horner(series, z, 2.0 / 11.0);
  series = horner(series, z, 2.0 / 9.0);
  series = horner(series, z, 2.0 / 7.0);
  series = horner(series, z, 2.0 / 5.0);
  series = horner(series, z, 2.0 / 3.0);
  const F log_m = multiply_add(z * s, series, s + s);
  const F low = multiply_add(k, splat<F>(kLn2Low), lost);
  const F result = multiply_add(k, splat<F>(kLn2High), log_m + low);
  return x < splat<F>(kInfinite<double>) ? result : x;  // NaN stays, too
}

// exp(x) for x <= 88; 0 below -87.3.
FLATSTEP_ELEMENT float exp_nonpositive(float x) { return scaled_exp(x, -87.3f, 127u); }

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
