// Stands in for CUDA's header of this name where kernels are compiled as C++ for the emulator: the
// language's extensions here, the functions of kernels in device_functions.h, those of the host in
// host_api.h. What is not here, kernels and launchers of this project do without.
#pragma once

#if !defined(FLATSTEP_CUDA_EMULATED)
#  error "only for emulated kernels; is the emulator's folder on the include path by mistake?"
#endif

#include <math.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The vector types are aligned as the device wants them.
#define FLATSTEP_EMULATED_VECTORS(T, name)                                           \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
FLATSTEP_EMULATED_VECTORS(unsigned char, uchar)
FLATSTEP_EMULATED_VECTORS(unsigned short, ushort)
FLATSTEP_EMULATED_VECTORS(short, short)
FLATSTEP_EMULATED_VECTORS(int, int)
FLATSTEP_EMULATED_VECTORS(unsigned, uint)
FLATSTEP_EMULATED_VECTORS(float, float)
#undef FLATSTEP_EMULATED_VECTORS

// Aligned to 16 bytes only: what one load takes.
struct alignas(16) double2 {
  double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

// Of the thread that runs; the emulator sets them before it goes on.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

#include "device_functions.h"
#include "emulator.h"
#include "host_api.h"
