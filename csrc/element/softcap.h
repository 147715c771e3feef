// Softcap of logits (Gemma 2, 2024, arXiv:2408.00118): y = c tanh(x / c), in float64 also for
// float32 logits, whose distance from the largest needs more digits than they have.
#pragma once

#include <type_traits>

#include "element/exponential.h"
#include "flatstep/types.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// A cap as the rows of one type of logits take it. All that is capped for a row has to be capped in
// the same way: the largest logit is at distance 0 from itself.
struct Softcap {
  double cap;    // 0: none
  double limit;  // logits of at most this size take cap_near()

  FLATSTEP_ELEMENT Softcap(double value, DType dtype)
      : cap(value),
        limit(dtype != DType::f64 && value <= 512.0 ? static_cast<double>(static_cast<float>(value))
                                                    : -1.0) {}
};

// c tanh(x / c) and its slope for x up to c but for the last digit of float32: tanh(z) = z (1 + z^2
// p(z^2)) with the polynomial of degree 9 that has the least relative error on [0, 1], 2^-38. So y
// is off by 2^-29 at most under a cap of 512. F is double or Vector<double>.
template <class F>
FLATSTEP_ELEMENT F cap_near(F x, double c, F& slope) {
  const F z = x * (1.0 / c), square = z * z;
  F poly = horner(splat<F>(1.3961779610960721e-05), square, -1.10728931938832e-04);
  poly = horner(poly, square, 4.5294786637706084e-04);
  poly = horner(poly, square, -1.3565257576317262e-03);
  poly = horner(poly, square, 3.543841496586331e-03);
  poly = horner(poly, square, -8.847820752099075e-03);
  poly = horner(poly, square, 0.02186639380096099);
  poly = horner(poly, square, -0.053967892946644704);
  poly = horner(poly, square, 0.13333331230929696);
  poly = horner(poly, square, -0.3333333329066537);
  const F tangent = multiply_add(z * square, poly, z);
  slope = multiply_add(-tangent, tangent, splat<F>(1.0));
  return c * tangent;
}

// The same for any x, to the last digits of float64, through q = exp(-2 |x| / c):
// tanh(|x| / c) = (1 - q) / (1 + q), slope 4 q / (1 + q)^2.
template <class F>
FLATSTEP_ELEMENT F cap_far(F x, double c, F& slope) {
  constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
  const F magnitude = float_of(bits_of(x) & ~kSign);
  F q, less_one;
  exp_and_less_one(magnitude * (-2.0 / c), q, less_one);
  const F inverse = 1.0 / (q + 1.0);
  slope = 4.0 * q * inverse * inverse;
  const F capped = c * (-less_one * inverse);
  return float_of(bits_of(capped) | (bits_of(x) & kSign));
}

// For each x the one of the two that it asks for.
template <class F>
FLATSTEP_ELEMENT F cap(F x, const Softcap& softcap, F& slope) {
  if (softcap.limit < 0) return cap_far(x, softcap.cap, slope);
  const F limit = splat<F>(softcap.limit);
  const auto near = (x <= limit) & (-x <= limit);
  if constexpr (std::is_same_v<F, double>) {
    return near ? cap_near(x, softcap.cap, slope) : cap_far(x, softcap.cap, slope);
  } else {
    F near_slope;
    const F y = cap_near(x, softcap.cap, near_slope), far = cap_far(x, softcap.cap, slope);
    slope = near ? near_slope : slope;
    return near ? y : far;
  }
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
