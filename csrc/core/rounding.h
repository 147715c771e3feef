// The random bits of stochastic rounding: a pure function of (seed, step, tensor, index), so they
// do not depend on threads, instruction set or device, and a resumed run sees the same ones.
//
// Element i of a tensor lies in block i / 128, at e = i % 128. It takes 16 bits from Philox4x32-7:
// word (e / 16) % 4 of counter 16 (i / 128) + e % 16, its lower half for e < 64, else its upper
// one. The counter's other words are the tensor's number and the step. An element's moments and its
// parameter are rounded with the same bits: each is right in the mean, and that is all that counts.
#pragma once

#include <cstdint>

#include "core/philox.h"

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

// The words of one of a block's counters.
static FLATSTEP_ELEMENT PhiloxWord4 rounding_words(const RoundingKey& key, std::int64_t block,
                                                   int counter) {
  const auto first = static_cast<std::uint64_t>(block * kRoundingCounters);
  return philox<kRoundingRounds>(
      key.seed ^ kRoundingDomain,
      static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(counter),
      static_cast<std::uint32_t>(key.tensor), static_cast<std::uint32_t>(key.step),
      static_cast<std::uint32_t>(key.step >> 32 & 0xffff) |
          static_cast<std::uint32_t>((first >> 32 & 0xffff) << 16));
}

// The bits of four elements of a block, lane + 32 j with lane < 32: they take one counter.
struct RoundingBits4 {
  std::uint32_t bits[4];
};

static FLATSTEP_ELEMENT RoundingBits4 rounding_bits_of_lane(const RoundingKey& key,
                                                            std::int64_t block, int lane) {
  const PhiloxWord4 words = rounding_words(key, block, lane % 16);
  const std::uint32_t even = lane < 16 ? words.word[0] : words.word[1];
  const std::uint32_t odd = lane < 16 ? words.word[2] : words.word[3];
  return {{even & 0xffffu, odd & 0xffffu, even >> 16, odd >> 16}};
}

}  // namespace flatstep
