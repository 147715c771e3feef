// Products in bfloat16 by the processor's own conversion, which the instruction sets of the kernels
// do not include.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/kernels/element.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

#if defined(__AVX512BW__) && (defined(__clang__) || __GNUC__ >= 10)
#  define FLATSTEP_WITH_BFLOAT16 __attribute__((target("avx512bf16")))

// Two vectors of products; the smallest x of their lanes.
FLATSTEP_WITH_BFLOAT16 inline void store_products(const float* x, Vector<float> factor,
                                                  bf16_bits* p, Vector<float>& least_first,
                                                  Vector<float>& least_second) {
  const Vector<float> first = load_vector(x), second = load_vector(x + kLanesOf<float>);
  least_first = smaller(first, least_first);
  least_second = smaller(second, least_second);
  const auto words = _mm512_cvtne2ps_pbh(second * factor, first * factor);
  std::memcpy(p, &words, sizeof words);
}

// p[j] = x[j] factor, rounded once, for pairs of vectors of x >= 0: how many are right. The
// instruction takes numbers below the smallest normal one for 0; if a product is that small, none
// counts.
FLATSTEP_WITH_BFLOAT16 inline std::int64_t normal_products(const float* x, std::int64_t size,
                                                           float factor, bf16_bits* p) {
  using V = Vector<float>;
  constexpr std::int64_t kPair = 2 * kLanesOf<float>;
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  const V factors = splat<V>(factor);
  V least[4];
  for (V& v : least) v = splat<V>(kInfinite<float>);
  std::int64_t j = 0;
  for (; j + 2 * kPair <= size; j += 2 * kPair) {
    store_products(x + j, factors, p + j, least[0], least[1]);
    store_products(x + j + kPair, factors, p + j + kPair, least[2], least[3]);
  }
  if (j + kPair <= size) {
    store_products(x + j, factors, p + j, least[0], least[1]);
    j += kPair;
  }
  const V of_all = smaller(smaller(least[0], least[1]), smaller(least[2], least[3]));
  const V smallest_normal = splat<V>(std::numeric_limits<float>::min());
  return below_or_nan(of_all * std::abs(factor), smallest_normal) != 0 ? 0 : j;
}

#  undef FLATSTEP_WITH_BFLOAT16
#else
inline std::int64_t normal_products(const float*, std::int64_t, float, bf16_bits*) { return 0; }
#endif

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
