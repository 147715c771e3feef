// Philox on many counters side by side. Included only by files that are compiled once per
// instruction set.
#pragma once

#include "core/philox.h"
#include "cpu/kernels/vector.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// The keys of all rounds.
template <int kRounds>
struct PhiloxKeys {
  std::uint64_t word[kRounds][2];

  explicit PhiloxKeys(std::uint64_t seed) {
    auto key0 = static_cast<std::uint32_t>(seed);
    auto key1 = static_cast<std::uint32_t>(seed >> 32);
    for (auto& key : word) {
      key[0] = key0;
      key[1] = key1;
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
  }
};

// A counter in every lane of 64 bits, its words in the lower halves; what lies above is never used.
struct PhiloxHalves {
  using V = Vector<std::uint64_t>;
  static constexpr std::int64_t kCounters = kLanesOf<std::uint64_t>;
  V word[4];

  void round(V key0, V key1) {
    const V product0 = multiply_halves(word[0], splat<V>(kPhiloxMultiplier0));
    const V product1 = multiply_halves(word[2], splat<V>(kPhiloxMultiplier1));
    word[0] = (product1 >> 32) ^ word[1] ^ key0;
    word[1] = product1;
    word[2] = (product0 >> 32) ^ word[3] ^ key1;
    word[3] = product0;
  }
};

// Several vectors of counters, round by round: each waits for its own products only.
template <int kRounds, int kCount>
inline __attribute__((always_inline)) void philox_halves(const PhiloxKeys<kRounds>& keys,
                                                         PhiloxHalves (&halves)[kCount]) {
  using V = PhiloxHalves::V;
  for (const auto& key : keys.word) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) halves[i].round(splat<V>(key[0]), splat<V>(key[1]));
  }
}

// Two words side by side in each lane.
inline Vector<std::uint32_t> side_by_side(PhiloxHalves::V lower, PhiloxHalves::V upper) {
  return (Vector<std::uint32_t>)((lower & 0xffffffffu) | upper << 32);
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
