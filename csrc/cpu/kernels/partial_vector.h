// The first lanes of vectors, from and to memory, where a row is no whole number of them.
#pragma once

#include "cpu/kernels/vector.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// The first `count` lanes, at least one, from p; the others are those of `rest`.
template <class T>
inline Vector<T> load_part(const T* p, std::int64_t count, Vector<T> rest) {
  std::memcpy(&rest, p, static_cast<std::size_t>(count) * sizeof(T));
  return rest;
}

// The first `count` lanes, at least one, to p.
template <class T>
inline void store_part(T* p, std::int64_t count, Vector<T> v) {
  std::memcpy(p, &v, static_cast<std::size_t>(count) * sizeof(T));
}

// Bytes that are copied into a vector, or out of one, hold up the next access to all of it; these
// instructions do not, nor do they touch what lies behind the lanes. keep_first has the first lanes
// of v, the others of `rest`.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline __mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}
inline Vector<float> keep_first(std::int64_t count, Vector<float> v, Vector<float> rest) {
  return _mm512_mask_mov_ps(rest, first_lanes(count), v);
}
inline Vector<float> load_part(const float* p, std::int64_t count, Vector<float> rest) {
  return _mm512_mask_loadu_ps(rest, first_lanes(count), p);
}
inline Vector<double> load_part(const double* p, std::int64_t count, Vector<double> rest) {
  return _mm512_mask_loadu_pd(rest, static_cast<__mmask8>(first_lanes(count)), p);
}
inline Vector<std::uint16_t> load_part(const std::uint16_t* p, std::int64_t count,
                                       Vector<std::uint16_t> rest) {
  return (Vector<std::uint16_t>)_mm256_mask_loadu_epi16((__m256i)rest, first_lanes(count), p);
}
inline void store_part(float* p, std::int64_t count, Vector<float> v) {
  _mm512_mask_storeu_ps(p, first_lanes(count), v);
}
inline void store_part(double* p, std::int64_t count, Vector<double> v) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(count)), v);
}
inline void store_part(std::uint16_t* p, std::int64_t count, Vector<std::uint16_t> v) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)v);
}
#elif defined(__AVX2__)
inline __m256i first_lanes(std::int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vector<float> keep_first(std::int64_t count, Vector<float> v, Vector<float> rest) {
  return _mm256_blendv_ps(rest, v, (__m256)first_lanes(count));
}
inline Vector<float> load_part(const float* p, std::int64_t count, Vector<float> rest) {
  return keep_first(count, _mm256_maskload_ps(p, first_lanes(count)), rest);
}
inline void store_part(float* p, std::int64_t count, Vector<float> v) {
  _mm256_maskstore_ps(p, first_lanes(count), v);
}
#else
inline Vector<float> keep_first(std::int64_t count, Vector<float> v, Vector<float> rest) {
  for (std::int64_t i = count; i < kLanesOf<float>; ++i) v[i] = rest[i];
  return v;
}
#endif

// The same where that may be all lanes.
template <class T>
inline Vector<T> load_first(const T* p, std::int64_t count, T rest) {
  return count == kLanesOf<T> ? load_vector(p) : load_part(p, count, splat<Vector<T>>(rest));
}

template <class T>
inline void store_first(T* p, std::int64_t count, Vector<T> v) {
  count == kLanesOf<T> ? store_vector(p, v) : store_part(p, count, v);
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
