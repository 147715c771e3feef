// The random bits of stochastic rounding: a pure function of (seed, step, tensor, index), so they
// do not depend on threads, instruction set or device, and a resumed run sees the same ones.
//
// Element i of a tensor lies in block i / 128, at e = i % 128. It takes 16 bits from Philox4x32-7:
// word (e / 16) % 4 of counter 16 (i / 128) + e % 16, its lower half for e < 64, else its upper
// one. The counter's other words are the tensor's number and the step. An element's moments and its
// parameter are rounded with the same bits: each is right in the mean, and that is all that counts.
#pragma once

#include <cstdint>

namespace flatstep {

struct RoundingKey {
  std::uint64_t seed;
  std::int64_t step;    // of the update, from 1
  std::int64_t tensor;  // number of the segment
};

// Enough for all tests of randomness (Salmon et al. 2011, table 2).
constexpr int kRoundingRounds = 7;
constexpr std::int64_t kRoundingBlock = 128;    // elements
constexpr std::int64_t kRoundingCounters = 16;  // of a block
// Sets the words apart from those of dropout with the same seed.
constexpr std::uint64_t kRoundingDomain = 0x726F756E64696E67u;

}  // namespace flatstep
