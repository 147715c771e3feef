// Numbers of 16 bits, in the lower half of 32, to float and back, rounded to nearest even.
#pragma once

#include "element/number.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// A NaN stays a quiet NaN with its sign.
struct Bfloat16Format {
  template <class U>
  static FLATSTEP_ELEMENT auto to_float(U bits) {
    return float_of(bits << 16);
  }
  // The result is in the upper half. A NaN that arithmetic made stays one: its lower half is 0.
  template <class U>
  static FLATSTEP_ELEMENT U round(U bits) {
    return bits + 0x7fffu + ((bits >> 16) & 1u);
  }
  template <class F>
  static FLATSTEP_ELEMENT auto from_float(F x) {
    const auto bits = bits_of(x);
    return x == x ? round(bits) >> 16 : (bits >> 16) | 0x40u;
  }
};

// IEEE 754 binary16.
struct Float16Format {
  template <class U>
  static FLATSTEP_ELEMENT auto to_float(U bits) {
    const U magnitude = (bits & 0x7fffu) << 13;
    // The exponents' biases differ by 112; the product is exact, subnormal numbers included.
    const U finite = bits_of(float_of(magnitude) * 0x1p112f);
    const U special = magnitude | 0x7f800000u;
    return float_of(((bits & 0x8000u) << 16) | ((bits & 0x7c00u) == 0x7c00u ? special : finite));
  }
  template <class F>
  static FLATSTEP_ELEMENT auto from_float(F x) {
    const auto bits = bits_of(x);
    const auto magnitude = bits & 0x7fffffffu;
    const auto normal = (magnitude - 0x37fff001u + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14: adding 0.5 rounds to the spacing of subnormal halves.
    const auto subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    auto half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude < 0x477ff000u ? half : (half & 0u) | 0x7c00u;
    half = x == x ? half : half | 0x7e00u;
    return ((bits >> 16) & 0x8000u) | half;
  }
};

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
