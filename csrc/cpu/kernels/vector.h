// Vectors of this instruction set, and what element/number.h has for numbers. Included only by
// files that are compiled once per instruction set, before the other headers of element/.
#pragma once

#if defined(__SSE2__)
#  include <immintrin.h>
#elif defined(__aarch64__)
#  include <arm_neon.h>
#endif

#ifndef FLATSTEP_ISA
#  error "FLATSTEP_ISA names the namespace of this instruction set"
#endif
#define FLATSTEP_ELEMENTS cpu::FLATSTEP_ISA

#include "cpu/kernels/table.h"
#include "element/number.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
// As many elements as a vector of float has.
template <>
struct VectorOf<std::uint16_t> {
  typedef std::uint16_t type __attribute__((vector_size(kVectorBytes / 2)));
};
template <>
struct VectorOf<std::uint8_t> {
  typedef std::uint8_t type __attribute__((vector_size(kVectorBytes / 4)));
};

// A register full of numbers. Loops that compilers do not vectorise well are written with these;
// the functions below take them and single numbers alike.
template <class T>
using Vector = typename VectorOf<T>::type;

typedef float FloatHalf __attribute__((vector_size(kVectorBytes / 2)));

template <class T>
constexpr std::int64_t kLanesOf = kVectorBytes / static_cast<std::int64_t>(sizeof(T));

inline Vector<std::uint32_t> bits_of(Vector<float> x) { return (Vector<std::uint32_t>)x; }
inline Vector<float> float_of(Vector<std::uint32_t> bits) { return (Vector<float>)bits; }
inline Vector<std::uint64_t> bits_of(Vector<double> x) { return (Vector<std::uint64_t>)x; }
inline Vector<double> float_of(Vector<std::uint64_t> bits) { return (Vector<double>)bits; }

// a * b + c, as for numbers. GCC has no generic function for this.
#if defined(__AVX512F__)
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__AVX__) && defined(__FMA__)
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
#elif defined(__aarch64__)
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return vfmaq_f32(c, a, b);
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return vfmaq_f64(c, a, b);
}
#else
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return a * b + c;
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return a * b + c;
}
#endif

inline Vector<float> square_root(Vector<float> x) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(0xffff, x);
#elif defined(__AVX__)
  return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(x);
#elif defined(__aarch64__)
  return vsqrtq_f32(x);
#else
  for (int i = 0; i < kLanesOf<float>; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// 8- and 16-bit numbers to 32 bits and back. GCC splits the generic conversion in two, and warns of
// the unmasked forms.
#if defined(__AVX512F__)
constexpr __mmask16 kAllLanes = 0xffff;
#endif

inline Vector<std::uint32_t> widen(Vector<std::uint16_t> half) {
#if defined(__AVX512F__)
  return (Vector<std::uint32_t>)_mm512_maskz_cvtepu16_epi32(kAllLanes, (__m256i)half);
#elif defined(__AVX2__)
  return (Vector<std::uint32_t>)_mm256_cvtepu16_epi32((__m128i)half);
#else
  return __builtin_convertvector(half, Vector<std::uint32_t>);
#endif
}

inline Vector<std::uint16_t> narrow(Vector<std::uint32_t> word) {
#if defined(__AVX512F__)
  return (Vector<std::uint16_t>)_mm512_maskz_cvtepi32_epi16(kAllLanes, (__m512i)word);
#else
  return __builtin_convertvector(word, Vector<std::uint16_t>);
#endif
}

inline Vector<std::uint32_t> widen(Vector<std::uint8_t> byte) {
#if defined(__AVX512F__)
  return (Vector<std::uint32_t>)_mm512_maskz_cvtepu8_epi32(kAllLanes, (__m128i)byte);
#else
  return __builtin_convertvector(byte, Vector<std::uint32_t>);
#endif
}

inline Vector<std::uint8_t> narrow_to_bytes(Vector<std::uint32_t> word) {
#if defined(__AVX512F__)
  return (Vector<std::uint8_t>)_mm512_maskz_cvtepi32_epi8(kAllLanes, (__m512i)word);
#else
  return __builtin_convertvector(word, Vector<std::uint8_t>);
#endif
}

// The products of the lower halves.
inline Vector<std::uint64_t> multiply_halves(Vector<std::uint64_t> a, Vector<std::uint64_t> b) {
#if defined(__AVX512F__)
  return (Vector<std::uint64_t>)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Vector<std::uint64_t>)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Vector<std::uint64_t>)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  return vmull_u32(vmovn_u64(a), vmovn_u64(b));
#else
  constexpr std::uint64_t kLower = 0xffffffffu;
  return (a & kLower) * (b & kLower);
#endif
}

template <class T>
inline Vector<T> load_vector(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store_vector(T* p, Vector<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// v, which the compiler has to keep in a register: GCC would rather load it again for every use,
// and loads across cache lines count twice.
template <class V>
inline V held(V v) {
#if defined(__SSE2__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// A vector of double from and to as many numbers of either type.
inline Vector<double> load_double(const double* p) { return load_vector(p); }
inline void store_double(double* p, Vector<double> v) { store_vector<double>(p, v); }
inline Vector<double> load_double(const float* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX__)
  return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  FloatHalf half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, Vector<double>);
#endif
}
inline void store_double(float* p, Vector<double> v) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(p, _mm512_maskz_cvtpd_ps(0xff, v));
#elif defined(__AVX__)
  _mm_storeu_ps(p, _mm256_cvtpd_ps(v));
#else
  const FloatHalf half = __builtin_convertvector(v, FloatHalf);
  std::memcpy(p, &half, sizeof half);
#endif
}

// A vector as doubles: one, or two from float.
inline void split_double(Vector<double> v, Vector<double>* out) { out[0] = v; }
inline void split_double(Vector<float> v, Vector<double>* out) {
#if defined(__AVX512DQ__)
  __m256 low;
  std::memcpy(&low, &v, sizeof low);
  out[0] = _mm512_maskz_cvtps_pd(0xff, low);
  out[1] = _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, v, 1));
#elif defined(__AVX__)
  out[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
  out[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#else
  FloatHalf halves[2];
  std::memcpy(halves, &v, sizeof v);
  for (int i = 0; i < 2; ++i) out[i] = __builtin_convertvector(halves[i], Vector<double>);
#endif
}

// a > b ? a : b, and a < b ? a : b: b where one is NaN. GCC compares and selects where a comes from
// integers.
#if defined(__AVX512F__)
inline Vector<float> larger(Vector<float> a, Vector<float> b) {
  return _mm512_maskz_max_ps(kAllLanes, a, b);
}
inline Vector<float> smaller(Vector<float> a, Vector<float> b) {
  return _mm512_maskz_min_ps(kAllLanes, a, b);
}
#elif defined(__AVX__)
inline Vector<float> larger(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
inline Vector<float> smaller(Vector<float> a, Vector<float> b) { return _mm256_min_ps(a, b); }
#else
inline Vector<float> larger(Vector<float> a, Vector<float> b) { return a > b ? a : b; }
inline Vector<float> smaller(Vector<float> a, Vector<float> b) { return a < b ? a : b; }
#endif
inline Vector<double> larger(Vector<double> a, Vector<double> b) { return a > b ? a : b; }
inline Vector<double> smaller(Vector<double> a, Vector<double> b) { return a < b ? a : b; }

// Where x is not below the limit, where it is below it or NaN, v in such lanes and 0 elsewhere, and
// sum + v in such lanes and sum elsewhere. GCC compares twice for two uses of a generic comparison,
// and makes two instructions of an addition under a mask.
#if defined(__AVX512F__)
inline __mmask16 at_least(Vector<float> x, Vector<float> limit) {
  return _mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ);
}
inline __mmask8 at_least(Vector<double> x, Vector<double> limit) {
  return _mm512_cmp_pd_mask(x, limit, _CMP_NLT_UQ);
}
inline __mmask16 below_or_nan(Vector<float> x, Vector<float> limit) {
  return _mm512_cmp_ps_mask(x, limit, _CMP_NGE_UQ);
}
inline __mmask8 below_or_nan(Vector<double> x, Vector<double> limit) {
  return _mm512_cmp_pd_mask(x, limit, _CMP_NGE_UQ);
}
inline Vector<float> keep(__mmask16 where, Vector<float> v) {
  return _mm512_maskz_mov_ps(where, v);
}
inline Vector<double> keep(__mmask8 where, Vector<double> v) {
  return _mm512_maskz_mov_pd(where, v);
}
inline Vector<float> add_where(__mmask16 where, Vector<float> sum, Vector<float> v) {
  return _mm512_mask_add_ps(sum, where, sum, v);
}
inline Vector<double> add_where(__mmask8 where, Vector<double> sum, Vector<double> v) {
  return _mm512_mask_add_pd(sum, where, sum, v);
}
#else
inline auto at_least(Vector<float> x, Vector<float> limit) { return ~(x < limit); }
inline auto at_least(Vector<double> x, Vector<double> limit) { return ~(x < limit); }
inline auto below_or_nan(Vector<float> x, Vector<float> limit) { return ~(x >= limit); }
inline auto below_or_nan(Vector<double> x, Vector<double> limit) { return ~(x >= limit); }
template <class Mask, class V>
V keep(Mask where, V v) {
  return where ? v : V{};
}
template <class Mask, class V>
V add_where(Mask where, V sum, V v) {
  return sum + keep(where, v);
}
#endif

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
