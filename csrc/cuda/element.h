// Element types of 16 bits: converted to float exactly, and back by rounding to nearest even, with
// the device's instructions where it has them. A NaN stays a NaN; its other bits are not part of
// the contract.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#ifndef FLATSTEP_ELEMENTS
#  define FLATSTEP_ELEMENTS cuda
#endif
#include "element/half.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#  define FLATSTEP_CONVERTS_16_BITS 1
#else
#  define FLATSTEP_CONVERTS_16_BITS 0
#endif

namespace flatstep::cuda {

enum class bf16_bits : std::uint16_t {};
enum class f16_bits : std::uint16_t {};

__host__ __device__ __forceinline__ float to_float(float x) { return x; }

__host__ __device__ __forceinline__ float to_float(bf16_bits x) {
  return float_of(static_cast<std::uint32_t>(x) << 16);
}

__host__ __device__ __forceinline__ float to_float(f16_bits x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(x)));
  return value;
#else
  return Float16Format::to_float(static_cast<std::uint32_t>(x));
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
  return static_cast<bf16_bits>(Bfloat16Format::from_float(x));
#endif
}

template <>
__host__ __device__ __forceinline__ f16_bits from_float<f16_bits>(float x) {
#if defined(__CUDA_ARCH__)
  unsigned short half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return static_cast<f16_bits>(half);
#else
  return static_cast<f16_bits>(Float16Format::from_float(x));
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
  low = float_of(word << 16);
  high = float_of(word & 0xffff0000u);
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

// The larger of the first and of the second elements of two pairs. A NaN beside a number is left
// out.
template <class T>
__host__ __device__ __forceinline__ std::uint32_t larger_pairs(std::uint32_t a, std::uint32_t b) {
#if FLATSTEP_CONVERTS_16_BITS
  std::uint32_t larger;
  if constexpr (std::is_same<T, bf16_bits>::value) {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  } else {
    asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  }
  return larger;
#else
  float a_low, a_high, b_low, b_high;
  to_floats<T>(a, a_low, a_high);
  to_floats<T>(b, b_low, b_high);
  return from_floats<T>(fmaxf(a_low, b_low), fmaxf(a_high, b_high));
#endif
}

}  // namespace flatstep::cuda

#undef FLATSTEP_CONVERTS_16_BITS
