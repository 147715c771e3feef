// Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405): four random words as a pure
// function of a 128-bit counter and a 64-bit key. The functions are static, so that every object
// has its own: this header is also used by the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "element/qualifier.h"

namespace flatstep {

constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr std::uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr std::uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr int kPhiloxRounds = 10;

// One round on one counter; the keys then grow by the Weyl constants.
static FLATSTEP_ELEMENT void philox_round(std::uint32_t& c0, std::uint32_t& c1, std::uint32_t& c2,
                                          std::uint32_t& c3, std::uint32_t key0,
                                          std::uint32_t key1) {
  const std::uint64_t product0 = std::uint64_t{kPhiloxMultiplier0} * c0;
  const std::uint64_t product1 = std::uint64_t{kPhiloxMultiplier1} * c2;
  c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
  c1 = static_cast<std::uint32_t>(product1);
  c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
  c3 = static_cast<std::uint32_t>(product0);
}

struct PhiloxWord4 {
  std::uint32_t word[4];
};

template <int kRounds = kPhiloxRounds>
static FLATSTEP_ELEMENT PhiloxWord4 philox(std::uint64_t seed, std::uint32_t c0, std::uint32_t c1,
                                           std::uint32_t c2, std::uint32_t c3) {
  std::uint32_t key0 = static_cast<std::uint32_t>(seed);
  std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    philox_round(c0, c1, c2, c3, key0, key1);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace flatstep
