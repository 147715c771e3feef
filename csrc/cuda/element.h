// Element types of 16 bits: converted to float exactly, and back by rounding to nearest even. A NaN
// stays a NaN; its other bits are not part of the contract. Also for the host, which has the
// formulas of the CPU's kernels (cpu/kernels/element.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#  define FLATSTEP_CONVERTS_16_BITS 1
#else
#  define FLATSTEP_CONVERTS_16_BITS 0
#endif

namespace flatstep::cuda {

enum class bf16_bits : std::uint16_t {};
enum class f16_bits : std::uint16_t {};

namespace element {

__host__ __device__ __forceinline__ std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
__host__ __device__ __forceinline__ float float_of(std::uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace element

__host__ __device__ __forceinline__ float to_float(float x) { return x; }

__host__ __device__ __forceinline__ float to_float(bf16_bits x) {
  return element::float_of(static_cast<std::uint32_t>(x) << 16);
}

__host__ __device__ __forceinline__ float to_float(f16_bits x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(x)));
  return value;
#else
  const std::uint32_t bits = static_cast<std::uint16_t>(x);
  const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
  // The exponents' biases differ by 112; the product is exact, subnormal numbers included.
  const std::uint32_t finite = element::bits_of(element::float_of(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude | 0x7f800000u;
  const bool is_finite = (bits & 0x7c00u) != 0x7c00u;
  return element::float_of(((bits & 0x8000u) << 16) | (is_finite ? finite : special));
#endif
}

template <class T>
__host__ __device__ __forceinline__ T from_float(float x);

template <>
__host__ __device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

template <>
__host__ __device__ __forceinline__ bf16_bits from_float<bf16_bits>(float x) {
#if FLATSTEP_CONVERTS_16_BITS
  unsigned short half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return static_cast<bf16_bits>(half);
#else
  const std::uint32_t bits = element::bits_of(x);
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<bf16_bits>(x == x ? rounded >> 16 : (bits >> 16) | 0x40u);
#endif
}

template <>
__host__ __device__ __forceinline__ f16_bits from_float<f16_bits>(float x) {
#if defined(__CUDA_ARCH__)
  unsigned short half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return static_cast<f16_bits>(half);
#else
  const std::uint32_t bits = element::bits_of(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half = (magnitude - 0x37fff001u + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 rounds to the spacing of subnormal halves.
  if (magnitude < 0x38800000u) {
    half = element::bits_of(element::float_of(magnitude) + 0.5f) - 0x3f000000u;
  }
  if (magnitude >= 0x477ff000u) half = 0x7c00u;
  if (x != x) half |= 0x7e00u;
  return static_cast<f16_bits>(((bits >> 16) & 0x8000u) | half);
#endif
}

// Pairs lie in one word, the first element in its lower half.
template <class T>
__host__ __device__ __forceinline__ void to_floats(std::uint32_t word, float& low, float& high) {
  static_assert(sizeof(T) == 2, "two elements a word");
  low = to_float(static_cast<T>(static_cast<std::uint16_t>(word)));
  high = to_float(static_cast<T>(static_cast<std::uint16_t>(word >> 16)));
}

template <>
__host__ __device__ __forceinline__ void to_floats<bf16_bits>(std::uint32_t word, float& low,
                                                              float& high) {
  low = element::float_of(word << 16);
  high = element::float_of(word & 0xffff0000u);
}

template <class T>
__host__ __device__ __forceinline__ std::uint32_t from_floats(float low, float high);

template <>
__host__ __device__ __forceinline__ std::uint32_t from_floats<bf16_bits>(float low, float high) {
#if FLATSTEP_CONVERTS_16_BITS
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return static_cast<std::uint32_t>(from_float<bf16_bits>(low)) |
         static_cast<std::uint32_t>(from_float<bf16_bits>(high)) << 16;
#endif
}

template <>
__host__ __device__ __forceinline__ std::uint32_t from_floats<f16_bits>(float low, float high) {
#if FLATSTEP_CONVERTS_16_BITS
  std::uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return static_cast<std::uint32_t>(from_float<f16_bits>(low)) |
         static_cast<std::uint32_t>(from_float<f16_bits>(high)) << 16;
#endif
}

}  // namespace flatstep::cuda

#undef FLATSTEP_CONVERTS_16_BITS
