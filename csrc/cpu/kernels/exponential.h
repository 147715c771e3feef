// The exponentials of the lanes of a kernel.
#pragma once

#include "cpu/kernels/vector.h"
#include "element/exponential.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class V, class Bits>
V exp_of_lanes(V x, Bits bias) {
  return scaled_exp(x, bias);
}

#if defined(__AVX512F__)
// scaled_exp from a table that fits in two registers: 2^(i/16), rounded, and what rounding took of
// it. x = n ln2/16 + r with |r| <= ln2/32, where 1 + r + r^2 (c + r/6) is off by 2e-9 at most; c is
// 1/2 and, of r^4/24, the nearest multiple of r^2. Error below 0.6 ULP, with three products fewer.
inline Vector<float> exp_of_lanes(Vector<float> x, std::uint32_t bias) {
  using F = Vector<float>;
  constexpr F kPowers = {0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
                         0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
                         0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
                         0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
  constexpr F kRests = {0.00000000e+00f,  4.62854715e-08f,  -1.19921575e-08f, 4.72978243e-08f,
                        3.19341815e-08f,  3.62105723e-08f,  -3.09907193e-08f, -7.47521334e-09f,
                        1.71142709e-08f,  -3.04768335e-08f, 5.23333421e-09f,  6.10759177e-09f,
                        -1.47196051e-08f, -5.25879518e-09f, -6.12825968e-09f, 5.14060927e-09f};
  constexpr Vector<std::uint32_t> kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  // Adding 1.5 * 2^23 rounds to an integer; 127 of the bias are in the powers already.
  const std::int32_t sixteenths = 16 * (static_cast<std::int32_t>(bias) - 127);
  const F round = splat<F>(12582912.0f + static_cast<float>(sixteenths));
  const F shifted = multiply_add(x, splat<F>(23.0831206542f), round);
  const F n = shifted - round;
  F r = multiply_add(n, splat<F>(-0.693147182464599609375f / 16), x);
  r = multiply_add(n, splat<F>(1.904654323148236017e-9f / 16), r);
  // The lowest four bits of n choose the power, those above go to its exponent: the shift leaves
  // the four below that, and the table has them taken away.
  const auto place = bits_of(shifted);
  const auto powers = (__m512i)(bits_of(kPowers) - (kLane << 19));
  const auto power =
      (Vector<std::uint32_t>)_mm512_maskz_permutexvar_epi32(kAllLanes, (__m512i)place, powers);
  const F value = float_of(power + (place << 19));
  const F rest = (F)_mm512_maskz_permutexvar_ps(kAllLanes, (__m512i)place, kRests);
  const F slope = horner(horner(splat<F>(1.6666667e-1f), r, 0.5000162f), r, 1.0f);
  const F tail = multiply_add(r, slope, rest);
  return multiply_add(tail, value, value);
}
#endif

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
