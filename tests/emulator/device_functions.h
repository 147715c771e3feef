// The functions that CUDA gives to kernels, with its names and its choice of types: what does not
// compile here would not compile there, or would convert silently.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "emulator.h"

namespace emulator {

template <class T, class... Types>
constexpr bool kIsOneOf = (std::is_same<T, Types>::value || ...);

template <class T>
constexpr bool kCanBeExchanged =
    kIsOneOf<T, int, unsigned, long, unsigned long, long long, unsigned long long, float, double>;

// The address is one that the device can load and store so many bytes at.
template <class T>
const T* checked(const T* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignof(T) != 0) {
    fail("an address is not aligned to " + std::to_string(alignof(T)) + " bytes");
  }
  return address;
}
template <class T>
T* checked(T* address) {
  return const_cast<T*>(checked(static_cast<const T*>(address)));
}

inline int lane() { return static_cast<int>(threadIdx.x % 32); }

template <class T>
T shuffle(Exchange kind, unsigned mask, T value, int source, Site site) {
  static_assert(kCanBeExchanged<T>, "CUDA has no shuffle for this type");
  std::uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  word = exchange(kind, mask, word, source, site);
  std::memcpy(&value, &word, sizeof value);
  return value;
}

inline int checked_width(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("the width of a shuffle is " + std::to_string(width) + ", expected a power of 2 up to 32");
  }
  return width;
}

}  // namespace emulator

// Where an operation stands in the kernel's source.
#define FLATSTEP_EMULATED_SITE emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(FLATSTEP_EMULATED_SITE) { emulator::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, FLATSTEP_EMULATED_SITE) {
  emulator::exchange(emulator::Exchange::sync, mask, 0, 0, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FLATSTEP_EMULATED_SITE) {
  const int from = emulator::checked_width(width) - 1;
  const int lane = (emulator::lane() & ~from) | (source & from);
  return emulator::shuffle(emulator::Exchange::shuffle, mask, value, lane, site);
}

// Beyond the end of its group a lane reads itself.
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 FLATSTEP_EMULATED_SITE) {
  const int lane = emulator::lane(), first = lane & ~(emulator::checked_width(width) - 1);
  const int source = distance > 31 || lane - static_cast<int>(distance) < first
                         ? lane
                         : lane - static_cast<int>(distance);
  return emulator::shuffle(emulator::Exchange::shuffle_up, mask, value, source, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   FLATSTEP_EMULATED_SITE) {
  const int lane = emulator::lane(), last = lane | (emulator::checked_width(width) - 1);
  const int source = distance > 31 || lane + static_cast<int>(distance) > last
                         ? lane
                         : lane + static_cast<int>(distance);
  return emulator::shuffle(emulator::Exchange::shuffle_down, mask, value, source, site);
}

// A lane may read earlier groups but not later ones.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, FLATSTEP_EMULATED_SITE) {
  const int lane = emulator::lane(), last = lane | (emulator::checked_width(width) - 1);
  const int source = lane ^ (distance & 31);
  return emulator::shuffle(emulator::Exchange::shuffle_xor, mask, value,
                           source > last ? lane : source, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FLATSTEP_EMULATED_SITE) {
  return static_cast<unsigned>(
      emulator::exchange(emulator::Exchange::ballot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, FLATSTEP_EMULATED_SITE) {
  return emulator::exchange(emulator::Exchange::any, mask, predicate != 0, 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FLATSTEP_EMULATED_SITE) {
  return emulator::exchange(emulator::Exchange::all, mask, predicate != 0, 0, site) != 0;
}
#undef FLATSTEP_EMULATED_SITE

inline void __threadfence() { emulator::yield(); }
inline void __threadfence_block() { emulator::yield(); }

// One thread runs at a time, so plain arithmetic is atomic. Floating-point numbers are left out on
// purpose: the order of such sums, and with it their bits, would not be fixed.
#define FLATSTEP_EMULATED_ATOMIC(T, name, result) \
  inline T name(T* address, T value) {            \
    emulator::yield();                            \
    T& place = *emulator::checked(address);       \
    const emulator::Atomic atomic;                \
    const T old = place;                          \
    place = static_cast<T>(result);               \
    return old;                                   \
  }
#define FLATSTEP_EMULATED_ATOMICS(T)                                \
  FLATSTEP_EMULATED_ATOMIC(T, atomicAdd, old + value)               \
  FLATSTEP_EMULATED_ATOMIC(T, atomicMin, old < value ? old : value) \
  FLATSTEP_EMULATED_ATOMIC(T, atomicMax, old < value ? value : old) \
  FLATSTEP_EMULATED_ATOMIC(T, atomicExch, value)                    \
  FLATSTEP_EMULATED_ATOMIC(T, atomicAnd, old& value)                \
  FLATSTEP_EMULATED_ATOMIC(T, atomicOr, old | value)                \
  inline T atomicCAS(T* address, T expected, T value) {             \
    emulator::yield();                                              \
    T& place = *emulator::checked(address);                         \
    const emulator::Atomic atomic;                                  \
    const T old = place;                                            \
    if (old == expected) place = value;                             \
    return old;                                                     \
  }
FLATSTEP_EMULATED_ATOMICS(unsigned)
FLATSTEP_EMULATED_ATOMICS(unsigned long long)
FLATSTEP_EMULATED_ATOMIC(unsigned, atomicInc, old >= value ? 0 : old + 1)
FLATSTEP_EMULATED_ATOMIC(unsigned, atomicDec, old == 0 || old > value ? value : old - 1)
#undef FLATSTEP_EMULATED_ATOMICS
#undef FLATSTEP_EMULATED_ATOMIC

#define FLATSTEP_EMULATED_LOAD(name)    \
  template <class T>                    \
  T name(const T* address) {            \
    return *emulator::checked(address); \
  }
FLATSTEP_EMULATED_LOAD(__ldg)
FLATSTEP_EMULATED_LOAD(__ldcs)
FLATSTEP_EMULATED_LOAD(__ldcg)
FLATSTEP_EMULATED_LOAD(__ldca)
#undef FLATSTEP_EMULATED_LOAD
template <class T>
void __stcs(T* address, T value) {
  *emulator::checked(address) = value;
}
template <class T>
void __stcg(T* address, T value) {
  *emulator::checked(address) = value;
}

#define FLATSTEP_EMULATED_BITS(name, From, To)                    \
  inline To name(From value) {                                    \
    To bits;                                                      \
    static_assert(sizeof bits == sizeof value, "the same bytes"); \
    std::memcpy(&bits, &value, sizeof bits);                      \
    return bits;                                                  \
  }
FLATSTEP_EMULATED_BITS(__float_as_uint, float, unsigned)
FLATSTEP_EMULATED_BITS(__uint_as_float, unsigned, float)
FLATSTEP_EMULATED_BITS(__float_as_int, float, int)
FLATSTEP_EMULATED_BITS(__int_as_float, int, float)
FLATSTEP_EMULATED_BITS(__double_as_longlong, double, long long)
FLATSTEP_EMULATED_BITS(__longlong_as_double, long long, double)
#undef FLATSTEP_EMULATED_BITS

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(std::uint64_t{a} * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Sums and products that are not fused.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
