// Stores in bfloat16 by the processor's own conversion, which the instruction sets of the kernels
// do not include.
#pragma once

#include <limits>

#include "cpu/kernels/element.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

#if defined(__AVX512BW__) && (defined(__clang__) || __GNUC__ >= 10)
#  define FLATSTEP_WITH_BFLOAT16 __attribute__((target("avx512bf16")))

inline Vector<float> smaller_magnitude(Vector<float> a, Vector<float> b) {
  constexpr int kOfMagnitudes = 0b10, kPositive = 0b10 << 2;
  return _mm512_maskz_range_ps(kAllLanes, a, b, kOfMagnitudes | kPositive);
}

// Stores two vectors, and has the smallest magnitudes of all so far.
FLATSTEP_WITH_BFLOAT16 inline void store_pair(bf16_bits* p, Vector<float> first,
                                              Vector<float> second, Vector<float> (&least)[2]) {
  least[0] = smaller_magnitude(first, least[0]);
  least[1] = smaller_magnitude(second, least[1]);
  const auto words = _mm512_cvtne2ps_pbh(second, first);
  std::memcpy(p, &words, sizeof words);
}

// Stores the vectors values(j, kLanes) at p + j, rounded once, in pairs: how many elements are
// right. The instruction takes numbers below the smallest normal one for 0; if there is one, or a
// 0, none counts.
template <class Values>
FLATSTEP_WITH_BFLOAT16 std::int64_t store_normal(std::int64_t size, const Values values,
                                                 bf16_bits* p) {
  using V = Vector<float>;
  constexpr std::int64_t kLanes = kLanesOf<float>, kPair = 2 * kLanes;
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  V even[2], odd[2];
  for (int i = 0; i < 2; ++i) even[i] = odd[i] = splat<V>(kInfinite<float>);
  std::int64_t j = 0;
  for (; j + 2 * kPair <= size; j += 2 * kPair) {
    store_pair(p + j, values(j, kLanes), values(j + kLanes, kLanes), even);
    const std::int64_t next = j + kPair;
    store_pair(p + next, values(next, kLanes), values(next + kLanes, kLanes), odd);
  }
  if (j + kPair <= size) {
    store_pair(p + j, values(j, kLanes), values(j + kLanes, kLanes), even);
    j += kPair;
  }
  const V least = smaller(smaller(even[0], even[1]), smaller(odd[0], odd[1]));
  return below_or_nan(least, splat<V>(std::numeric_limits<float>::min())) != 0 ? 0 : j;
}

#  undef FLATSTEP_WITH_BFLOAT16
#else
template <class Values>
std::int64_t store_normal(std::int64_t, const Values&, bf16_bits*) {
  return 0;
}
#endif

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
