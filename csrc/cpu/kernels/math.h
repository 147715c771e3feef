// Element arithmetic of the CPU kernels: branch-free, so that the compiler vectorises the loops
// around it. Included only by files that are compiled once per instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kernels/table.h"

#ifndef FLATSTEP_ISA
#  error "FLATSTEP_ISA names the namespace of this instruction set"
#endif

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline std::uint64_t bits_of(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline double double_of(std::uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// a * b + c, rounded once where the instruction set can do it. The library's fma() on a machine
// without the instruction is a hundred times slower than the two roundings it would save.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline double multiply_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) for x <= 88: below -87.3 the result is 0; NaN stays NaN.
// Range reduction x = n ln2 + r with a two-part ln2 (Cody & Waite), |r| <= ln2 / 2; the polynomial
// 1 + r + r^2 q(r), with q a degree-4 Chebyshev fit, off by 1e-8 at most. Error below 1.2 ULP.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < -87.3f ? -87.3f : x;
  const float shifted = multiply_add(clamped, 1.44269504f, kRound);
  const float n = shifted - kRound;
  float r = multiply_add(n, -0.693359375f, clamped);
  r = multiply_add(n, 2.12194440e-4f, r);
  float poly = 1.3933652e-3f;
  poly = multiply_add(poly, r, 8.3631817e-3f);
  poly = multiply_add(poly, r, 4.1666467e-2f);
  poly = multiply_add(poly, r, 1.6666576e-1f);
  poly = multiply_add(poly, r, 0.5f);
  // exp(r) = 1 + (r + r^2 * poly), the small part first so that the last addition rounds once.
  const float tail = multiply_add(r * r, poly, r);
  const float power = float_of((bits_of(shifted) + 127u) << 23);  // 2^n
  const float value = multiply_add(tail, power, power);
  return x < -87.3f ? 0.0f : value;
}

// The same in double: the Taylor series to degree 13, error below 1 ULP; 0 below -708.
inline double exp_nonpositive(double x) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double clamped = x < -708.0 ? -708.0 : x;
  const double shifted = multiply_add(clamped, 1.4426950408889634, kRound);
  const double n = shifted - kRound;
  double r = multiply_add(n, -6.93147180369123816490e-01, clamped);
  r = multiply_add(n, -1.90821492927058770002e-10, r);
  double poly = 1.0 / 6227020800.0;
  poly = multiply_add(poly, r, 1.0 / 479001600.0);
  poly = multiply_add(poly, r, 1.0 / 39916800.0);
  poly = multiply_add(poly, r, 1.0 / 3628800.0);
  poly = multiply_add(poly, r, 1.0 / 362880.0);
  poly = multiply_add(poly, r, 1.0 / 40320.0);
  poly = multiply_add(poly, r, 1.0 / 5040.0);
  poly = multiply_add(poly, r, 1.0 / 720.0);
  poly = multiply_add(poly, r, 1.0 / 120.0);
  poly = multiply_add(poly, r, 1.0 / 24.0);
  poly = multiply_add(poly, r, 1.0 / 6.0);
  poly = multiply_add(poly, r, 0.5);
  const double tail = multiply_add(r * r, poly, r);
  const double power = double_of((bits_of(shifted) + 1023u) << 52);
  const double value = multiply_add(tail, power, power);
  return x < -708.0 ? 0.0 : value;
}

// Logits and gradients are loaded to, and stored from, the accumulation type.
template <class T>
struct Element {
  using Accumulate = T;
  static T load(T x) { return x; }
  static T store(T x) { return x; }
};

template <>
struct Element<bf16_bits> {
  using Accumulate = float;
  static float load(bf16_bits x) { return float_of(static_cast<std::uint32_t>(x) << 16); }
  // Round to nearest even; a NaN keeps its sign and stays quiet.
  static bf16_bits store(float x) {
    const std::uint32_t bits = bits_of(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t nan = (bits >> 16) | 0x40u;
    return static_cast<bf16_bits>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
};

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
