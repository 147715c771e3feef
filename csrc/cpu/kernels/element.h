// Element types of logits and gradients: how they are loaded to, and stored from, the type in which
// their arithmetic is done, one number or a vector at a time. Included only by files that are
// compiled once per instruction set.
#pragma once

#include "cpu/kernels/partial_vector.h"
#include "element/half.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class T>
struct Element;

// Two vectors, one behind the other; those that are stored must be results of arithmetic.
template <class T, class A>
struct ElementPairs {
  static void load_pair(const T* p, Vector<A>& first, Vector<A>& second) {
    first = Element<T>::load_lanes(p);
    second = Element<T>::load_lanes(p + kLanesOf<A>);
  }
  static void load_in_any_order(const T* p, Vector<A>& first, Vector<A>& second) {
    Element<T>::load_pair(p, first, second);
  }
  static void store_pair(T* p, Vector<A> first, Vector<A> second) {
    Element<T>::store_lanes(p, first);
    Element<T>::store_lanes(p + kLanesOf<A>, second);
  }
};

template <class T>
struct Element : ElementPairs<T, T> {
  using Accumulate = T;
  static T load(T x) { return x; }
  static T store(T x) { return x; }
  static Vector<T> load_lanes(const T* p) { return load_vector(p); }
  static void store_lanes(T* p, Vector<T> v) { store_vector(p, v); }
  static Vector<T> load_some(const T* p, std::int64_t count, Vector<T> rest) {
    return load_part(p, count, rest);
  }
  static void store_some(T* p, std::int64_t count, Vector<T> v) { store_part(p, count, v); }
};

// 16-bit types; Format converts bits in the lower half of 32 to f32 and back, rounding to nearest
// even.
template <class T, class Format>
struct HalfElement : ElementPairs<T, float> {
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
  static Vector<float> load_some(const T* p, std::int64_t count, Vector<float> rest) {
    const Half half = load_part(reinterpret_cast<const std::uint16_t*>(p), count, Half{});
    return keep_first(count, Format::to_float(widen(half)), rest);
  }
  static void store_some(T* p, std::int64_t count, Vector<float> v) {
    store_part(reinterpret_cast<std::uint16_t*>(p), count, narrow(Format::from_float(v)));
  }
};

template <>
struct Element<bf16_bits> : HalfElement<bf16_bits, Bfloat16Format> {
  // The upper and the lower half of each 32 bits.
  static void load_in_any_order(const bf16_bits* p, Vector<float>& first, Vector<float>& second) {
    Vector<std::uint32_t> words;
    std::memcpy(&words, p, sizeof words);
    first = float_of(words & 0xffff0000u);
    second = float_of(words << 16);
  }
#if defined(__AVX512BW__)
  // One permutation for each vector, instead of widening and shifting.
  static void load_pair(const bf16_bits* p, Vector<float>& first, Vector<float>& second) {
    constexpr __mmask32 kUpper = 0xaaaaaaaa;
    const __m512i words = _mm512_loadu_si512(p);
    const auto from = lane_numbers() << 16;
    first = (Vector<float>)_mm512_maskz_permutexvar_epi16(kUpper, (__m512i)from, words);
    const auto later = from + (16u << 16);
    second = (Vector<float>)_mm512_maskz_permutexvar_epi16(kUpper, (__m512i)later, words);
  }
  static void store_pair(bf16_bits* p, Vector<float> first, Vector<float> second) {
    const auto odd_words = lane_numbers() * 0x00040004u + 0x00030001u;
    const __m512i words = _mm512_permutex2var_epi16(
        (__m512i)Bfloat16Format::round(bits_of(first)), (__m512i)odd_words,
        (__m512i)Bfloat16Format::round(bits_of(second)));
    _mm512_storeu_si512(p, words);
  }

 private:
  static Vector<std::uint32_t> lane_numbers() {
    return Vector<std::uint32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  }
#else
  static void store_pair(bf16_bits* p, Vector<float> first, Vector<float> second) {
    store_rounded(p, first);
    store_rounded(p + kLanesOf<float>, second);
  }

 private:
  static void store_rounded(bf16_bits* p, Vector<float> v) {
    const Half half = narrow(Bfloat16Format::round(bits_of(v)) >> 16);
    std::memcpy(p, &half, sizeof half);
  }
#endif
};
#if defined(__AVX__) && defined(__F16C__)
// The instructions for this type; they differ from the above only in the payload of a NaN.
template <>
struct Element<f16_bits> : HalfElement<f16_bits, Float16Format> {
  static Vector<float> load_lanes(const f16_bits* p) {
    Half half;
    std::memcpy(&half, p, sizeof half);
#  if defined(__AVX512F__)
    return _mm512_maskz_cvtph_ps(kAllLanes, (__m256i)half);
#  else
    return _mm256_cvtph_ps((__m128i)half);
#  endif
  }
  static void load_pair(const f16_bits* p, Vector<float>& first, Vector<float>& second) {
    first = load_lanes(p);
    second = load_lanes(p + kLanesOf<float>);
  }
  static void load_in_any_order(const f16_bits* p, Vector<float>& first, Vector<float>& second) {
    load_pair(p, first, second);
  }
  static void store_pair(f16_bits* p, Vector<float> first, Vector<float> second) {
    store_number(p, first);
    store_number(p + kLanesOf<float>, second);
  }

 private:
  static void store_number(f16_bits* p, Vector<float> v) {
#  if defined(__AVX512F__)
    const auto half = (Half)_mm512_maskz_cvtps_ph(kAllLanes, v, _MM_FROUND_TO_NEAREST_INT);
#  else
    const auto half = (Half)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#  endif
    std::memcpy(p, &half, sizeof half);
  }
};
#else
template <>
struct Element<f16_bits> : HalfElement<f16_bits, Float16Format> {};
#endif

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
