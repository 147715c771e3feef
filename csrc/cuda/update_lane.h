// How a lane of a warp reads and writes its elements of a block of 128, in every type.
#pragma once

#include "cuda/device.h"
#include "flatstep/types.h"

namespace flatstep::cuda {
namespace {

constexpr int kEach = 4;  // elements of a lane

// The elements of a lane in one block: j is there for 32 j < left. Where it is not, the arithmetic
// is that of zeros, as on the CPU.
struct Lane {
  std::int64_t at;  // the first one's index in the tensor
  int left;

  __device__ __forceinline__ bool has(int j) const { return kWarp * j < left; }
};

template <class T>
__device__ __forceinline__ const T* at(const void* base, const Lane& lane) {
  return static_cast<const T*>(base) + lane.at;
}
template <class T>
__device__ __forceinline__ T* at(void* base, const Lane& lane) {
  return static_cast<T*>(base) + lane.at;
}

// Numbers as they lie in memory: a conversion waits for them, and other loads should be on their
// way by then.
struct Raw {
  std::uint32_t bits[kEach];
};

template <class T>
__device__ __forceinline__ Raw load_as(const void* base, const Lane& lane) {
  const T* from = at<T>(base, lane);
  Raw raw;
#pragma unroll
  for (int j = 0; j < kEach; ++j) raw.bits[j] = lane.has(j) ? from[kWarp * j] : 0u;
  return raw;
}
__device__ __forceinline__ Raw load(const void* base, DType dtype, const Lane& lane) {
  return dtype == DType::f32 ? load_as<std::uint32_t>(base, lane)
                             : load_as<std::uint16_t>(base, lane);
}

__device__ __forceinline__ void convert(const Raw& raw, DType dtype, float (&x)[kEach]) {
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    x[j] = dtype == DType::f32    ? float_of(raw.bits[j])
           : dtype == DType::bf16 ? to_float(static_cast<bf16_bits>(raw.bits[j]))
                                  : to_float(static_cast<f16_bits>(raw.bits[j]));
  }
}

template <class T, class Value>
__device__ __forceinline__ void store(void* base, const Lane& lane, const Value& value) {
  T* to = at<T>(base, lane);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (lane.has(j)) to[kWarp * j] = value(j);
  }
}

// Moments are read and written once a step.
__device__ __forceinline__ void load_moment(const void* base, const Lane& lane, float (&x)[kEach]) {
  const float* from = at<float>(base, lane);
#pragma unroll
  for (int j = 0; j < kEach; ++j) x[j] = lane.has(j) ? load_streaming(from + kWarp * j) : 0.0f;
}
__device__ __forceinline__ void store_moment(void* base, const Lane& lane,
                                             const float (&x)[kEach]) {
  float* to = at<float>(base, lane);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (lane.has(j)) store_streaming(to + kWarp * j, x[j]);
  }
}

}  // namespace
}  // namespace flatstep::cuda
