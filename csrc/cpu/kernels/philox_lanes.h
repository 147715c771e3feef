// Philox on many counters side by side. Included only by files that are compiled once per
// instruction set.
#pragma once

#include "core/philox.h"
#include "cpu/kernels/vector.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// word[k][i] is word k of counter i, then of the result.
template <int kCounters>
struct PhiloxLanes {
  alignas(64) std::uint32_t word[4][kCounters];
};

// Every lane of 64 bits holds one counter's word in its lower half; what lies above is never used.
struct PhiloxHalves {
  using V = Vector<std::uint64_t>;
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

template <int kRounds, int kCounters>
void philox_lanes(std::uint64_t seed, PhiloxLanes<kCounters>& lanes) {
  using V = Vector<std::uint64_t>;
  constexpr int kStep = static_cast<int>(kLanesOf<std::uint32_t>);
  static_assert(kCounters % kStep == 0);
  for (int first = 0; first < kCounters; first += kStep) {
    PhiloxHalves even, odd;
    for (int k = 0; k < 4; ++k) {
      even.word[k] = (V)load_vector(&lanes.word[k][first]);
      odd.word[k] = even.word[k] >> 32;
    }
    std::uint32_t key0 = static_cast<std::uint32_t>(seed);
    std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < kRounds; ++round) {
      even.round(splat<V>(key0), splat<V>(key1));
      odd.round(splat<V>(key0), splat<V>(key1));
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    for (int k = 0; k < 4; ++k) {
      const V both = (even.word[k] & 0xffffffffu) | odd.word[k] << 32;
      store_vector<std::uint32_t>(&lanes.word[k][first], (Vector<std::uint32_t>)both);
    }
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
