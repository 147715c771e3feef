// What kernels use of the device beyond CUDA's own functions: shared memory, sums and maxima of a
// warp or block, 16-bit floats, loads and stores that pass by the caches. FLATSTEP_CUDA_EMULATED
// stands for the tests' emulator, which compiles kernels as C++ (tests/emulator).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace flatstep::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x / kWarp); }

// The block's dynamic shared memory. A kernel uses it as one T, a struct of all it needs.
template <class T>
__device__ __forceinline__ T& shared_memory() {
  static_assert(std::is_trivially_default_constructible<T>::value, "shared memory is not set up");
  static_assert(alignof(T) <= 16, "shared memory is aligned to 16 bytes");
#if defined(FLATSTEP_CUDA_EMULATED)
  return *static_cast<T*>(emulator::shared_memory(sizeof(T)));
#else
  extern __shared__ __align__(16) unsigned char flatstep_shared_memory[];
  return *reinterpret_cast<T*>(flatstep_shared_memory);
#endif
}

// What lies behind that T, aligned to 16 bytes: the launch says how much.
template <class T>
__device__ __forceinline__ void* behind(T& shared) {
  static_assert(alignof(T) == 16, "what follows is aligned to 16 bytes");
  return &shared + 1;
}

// Copies 16 bytes, aligned as such, from global to shared memory while the thread goes on. It has
// them after wait_for_copies(), other threads of the block after a barrier behind that.
#if defined(FLATSTEP_CUDA_EMULATED)
inline void copy_async(void* shared, const void* global) { emulator::copy_async(shared, global); }
inline void wait_for_copies() { emulator::wait_for_copies(); }
#else
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

// 2^x within 2 units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_approx(float x) {
#if defined(FLATSTEP_CUDA_EMULATED)
  const float power = exp2f(x);
  return power < 0x1p-126f ? 0.0f : power;
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#endif
}

// Trivial types of 2, 4, 8 or 16 bytes that are read or written once: they do not push others out
// of the caches.
#if defined(FLATSTEP_CUDA_EMULATED)
template <class T>
T load_streaming(const T* from) {
  return __ldcs(from);
}
template <class T>
void store_streaming(T* to, T value) {
  __stcs(to, value);
}
inline void prefetch(const void*) {}
#else
template <std::size_t bytes>
struct Word;
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned int;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

template <class T>
__device__ __forceinline__ T load_streaming(const T* from) {
  const auto word = __ldcs(reinterpret_cast<const typename Word<sizeof(T)>::Type*>(from));
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
template <class T>
__device__ __forceinline__ void store_streaming(T* to, T value) {
  typename Word<sizeof(T)>::Type word;
  std::memcpy(&word, &value, sizeof word);
  __stcs(reinterpret_cast<typename Word<sizeof(T)>::Type*>(to), word);
}

// Into L2; an address that cannot be read is ignored.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
#endif

// Combines the values of a whole warp in a butterfly: with a combination that does not care which
// operand comes first, every lane gets the same bits.
template <class T, class Combine>
__device__ __forceinline__ T warp_combine(T value, Combine combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

template <class T>
struct Larger {
  __device__ __forceinline__ T operator()(T a, T b) const { return a < b ? b : a; }
};
// A NaN beside a number is left out.
template <>
struct Larger<float> {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
template <class T>
struct Sum {
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  return warp_combine(value, Larger<T>());
}
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_combine(value, Sum<T>());
}

// The same over a block of whole warps, for every thread; `partial` is shared memory with one
// element a warp. Starts and ends with a barrier's guarantees: it may be called again at once.
template <class T, class Combine>
__device__ __forceinline__ T block_combine(T value, T none, T* partial, Combine combine) {
  value = warp_combine(value, combine);
  if (lane() == 0) partial[warp()] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  value = warp_combine(lane() < warps ? partial[lane()] : none, combine);
  __syncthreads();
  return value;
}
template <class T>
__device__ __forceinline__ T block_max(T value, T* partial) {
  return block_combine(value, value, partial, Larger<T>());
}
template <class T>
__device__ __forceinline__ T block_sum(T value, T* partial) {
  return block_combine(value, T(0), partial, Sum<T>());
}

}  // namespace flatstep::cuda

#include "cuda/element.h"
