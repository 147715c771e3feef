// Element types of logits and gradients: how they are loaded to, and stored from, the type in which
// their arithmetic is done, one number or a vector at a time. Included only by files that are
// compiled once per instruction set.
#pragma once

#include "cpu/kernels/vector.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class T>
struct Element {
  using Accumulate = T;
  static T load(T x) { return x; }
  static T store(T x) { return x; }
  static Vector<T> load_lanes(const T* p) { return load_vector(p); }
  static void store_lanes(T* p, Vector<T> v) { store_vector(p, v); }
};

// 16-bit types; Format converts bits in the lower half of 32 to f32 and back, rounding to nearest
// even.
template <class T, class Format>
struct HalfElement {
  using Accumulate = float;
  using Half = Vector<std::uint16_t>;

  static float load(T x) { return Format::to_float(static_cast<std::uint32_t>(x)); }
  static T store(float x) { return static_cast<T>(Format::from_float(x)); }
  static Vector<float> load_lanes(const T* p) {
    Half half;
    std::memcpy(&half, p, sizeof half);
    return Format::to_float(widen(half));
  }
  static void store_lanes(T* p, Vector<float> v) {
    const Half half = narrow(Format::from_float(v));
    std::memcpy(p, &half, sizeof half);
  }
};

// A NaN stays a quiet NaN with its sign.
struct Bfloat16Format {
  template <class U>
  static auto to_float(U bits) {
    return float_of(bits << 16);
  }
  template <class F>
  static auto from_float(F x) {
    const auto bits = bits_of(x);
    const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? rounded : (bits >> 16) | 0x40u;
  }
};

// IEEE 754 binary16.
struct Float16Format {
  template <class U>
  static auto to_float(U bits) {
    const U magnitude = (bits & 0x7fffu) << 13;
    // The exponents' biases differ by 112; the product is exact, subnormal numbers included.
    const U finite = bits_of(float_of(magnitude) * 0x1p112f);
    const U special = magnitude | 0x7f800000u;
    return float_of(((bits & 0x8000u) << 16) | ((bits & 0x7c00u) == 0x7c00u ? special : finite));
  }
  template <class F>
  static auto from_float(F x) {
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

template <>
struct Element<bf16_bits> : HalfElement<bf16_bits, Bfloat16Format> {};
template <>
struct Element<f16_bits> : HalfElement<f16_bits, Float16Format> {};

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
