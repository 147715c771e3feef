// Updates with 8-bit moments, and stochastic rounding; the formats are in element/low_bit.h.
#include <algorithm>

#include "cpu/kernels/philox_lanes.h"
#include "cpu/kernels/tables.h"
#include "element/low_bit.h"
#include "element/update.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

using F = Vector<float>;
using U = Vector<std::uint32_t>;

constexpr std::int64_t kBlock = kRoundingBlock;
constexpr std::int64_t kLanes = kLanesOf<float>;

// There is so much arithmetic here that the processor alone does not read far enough ahead.
constexpr std::int64_t kPrefetch = 1024;

inline U codes_at(const std::uint8_t* codes) { return widen(load_vector(codes)); }

inline void store_codes(std::uint8_t* to, U codes) {
  store_vector<std::uint8_t>(to, narrow_to_bytes(codes));
}

inline U random_at(const std::uint16_t* random) { return widen(load_vector(random)); }

inline std::uint32_t largest_lane(U v) {
  std::uint32_t lanes[kLanes];
  store_vector<std::uint32_t>(lanes, v);
  return *std::max_element(lanes, lanes + kLanes);
}

inline void read_ahead(const LowBitArrays& a, std::int64_t at) {
  const std::int64_t ahead = at + kPrefetch;
  __builtin_prefetch(static_cast<const char*>(a.param_memory) + ahead * a.param_bytes, 1);
  __builtin_prefetch(static_cast<const char*>(a.grad_memory) + ahead * a.grad_bytes);
}

template <bool kDecoupled>
void update_adam(const LowBitArrays& arrays, std::int64_t size,
                 const UpdateScalars<float>& scalars) {
  const LowBitArrays a = arrays;
  const UpdateScalars<float> s = scalars;
  for (std::int64_t begin = 0; begin < size; begin += kBlock) {
    const std::uint32_t scale1 = a.scales1[begin / kBlock], scale2 = a.scales2[begin / kBlock];
    F first[kBlock / kLanes], second[kBlock / kLanes];
    U largest1{}, largest2{};
    for (std::int64_t i = 0; i < kBlock / kLanes; ++i) {
      const std::int64_t at = begin + i * kLanes;
      read_ahead(a, at);
      F p = load_vector(a.param + at);
      F m = FirstMoment::decode(codes_at(a.codes1 + at), scale1);
      F v = SecondMoment::decode(codes_at(a.codes2 + at), scale2);
      const F g = scaled_gradient(load_vector(a.grad + at), s);
      update_moments<kDecoupled, Rounding::native>(g, p, m, v, s);
      store_vector<float>(a.param + at, adam_param_short<kDecoupled>(p, m, v, s));
      first[i] = m;
      second[i] = v;
      const U bits1 = FirstMoment::magnitude(m), bits2 = SecondMoment::magnitude(v);
      largest1 = bits1 > largest1 ? bits1 : largest1;
      largest2 = bits2 > largest2 ? bits2 : largest2;
    }
    const std::uint32_t new1 = FirstMoment::scale_of(largest_lane(largest1));
    const std::uint32_t new2 = SecondMoment::scale_of(largest_lane(largest2));
    a.scales1[begin / kBlock] = static_cast<std::uint16_t>(new1);
    a.scales2[begin / kBlock] = static_cast<std::uint16_t>(new2);
    for (std::int64_t i = 0; i < kBlock / kLanes; ++i) {
      const std::int64_t at = begin + i * kLanes;
      const U random = random_at(a.random + at);
      store_codes(a.codes1 + at, FirstMoment::encode(first[i], random, new1));
      store_codes(a.codes2 + at, SecondMoment::encode(second[i], random, new2));
    }
  }
}

template <bool kFirstStep, bool kNesterov>
void update_momentum(const LowBitArrays& a, std::int64_t size, const UpdateScalars<float>& s) {
  for (std::int64_t begin = 0; begin < size; begin += kBlock) {
    const std::uint32_t scale = a.scales1[begin / kBlock];
    F moments[kBlock / kLanes];
    U largest{};
    for (std::int64_t i = 0; i < kBlock / kLanes; ++i) {
      const std::int64_t at = begin + i * kLanes;
      read_ahead(a, at);
      F buffer = FirstMoment::decode(codes_at(a.codes1 + at), scale);
      const F g = scaled_gradient(load_vector(a.grad + at), s);
      const F p = load_vector(a.param + at);
      store_vector<float>(a.param + at,
                          sgd_param<false, true, kFirstStep, kNesterov>(p, g, buffer, s));
      moments[i] = buffer;
      const U bits = FirstMoment::magnitude(buffer);
      largest = bits > largest ? bits : largest;
    }
    const std::uint32_t new_scale = FirstMoment::scale_of(largest_lane(largest));
    a.scales1[begin / kBlock] = static_cast<std::uint16_t>(new_scale);
    for (std::int64_t i = 0; i < kBlock / kLanes; ++i) {
      const std::int64_t at = begin + i * kLanes;
      const U random = random_at(a.random + at);
      store_codes(a.codes1 + at, FirstMoment::encode(moments[i], random, new_scale));
    }
  }
}

void update_sgd(const LowBitArrays& arrays, std::int64_t size, const UpdateScalars<float>& s) {
  with_sgd_variant(true, s.first_step, s.nesterov, [&](auto, auto first, auto nesterov) {
    update_momentum<first, nesterov>(arrays, size, s);
  });
}

// See core/rounding.h.
void rounding_bits(const RoundingKey& key, std::int64_t first, std::int64_t size,
                   std::uint16_t* bits) {
  using Words = PhiloxHalves::V;
  constexpr int kVectors = static_cast<int>(kRoundingCounters / PhiloxHalves::kCounters);
  const PhiloxKeys<kRoundingRounds> keys(key.seed ^ kRoundingDomain);
  Words lane;
  for (int i = 0; i < PhiloxHalves::kCounters; ++i) lane[i] = static_cast<std::uint64_t>(2 * i);
  for (std::int64_t i = 0; i < size; i += kBlock) {
    const auto counter = static_cast<std::uint64_t>((first + i) / kBlock * kRoundingCounters);
    const std::uint64_t rest[3] = {
        static_cast<std::uint32_t>(key.tensor), static_cast<std::uint32_t>(key.step),
        (static_cast<std::uint64_t>(key.step) >> 32 & 0xffff) | (counter >> 32 & 0xffff) << 16};
    // Even and odd counters in turn, so that their words are side by side.
    PhiloxHalves halves[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const auto from =
          counter + static_cast<std::uint64_t>(v / 2 * 2 * PhiloxHalves::kCounters + v % 2);
      halves[v] = {
          {lane + from, splat<Words>(rest[0]), splat<Words>(rest[1]), splat<Words>(rest[2])}};
    }
    philox_halves(keys, halves);
    for (int word = 0; word < 4; ++word) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v += 2) {
        const U random = side_by_side(halves[v].word[word], halves[v + 1].word[word]);
        std::uint16_t* to = bits + i + word * kRoundingCounters + v / 2 * kLanes;
        store_vector<std::uint16_t>(to, narrow(random));
        store_vector<std::uint16_t>(to + kBlock / 2, narrow(random >> 16));
      }
    }
  }
}

void round_to_bf16(const float* from, const std::uint16_t* bits, std::int64_t size, bf16_bits* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const auto upper = narrow(rounded_to_bf16(load_vector(from + i), random_at(bits + i)));
    std::memcpy(to + i, &upper, sizeof upper);
  }
  for (; i < size; ++i) {
    to[i] = static_cast<bf16_bits>(rounded_to_bf16(from[i], std::uint32_t{bits[i]}));
  }
}

}  // namespace

void fill_low_bit_kernels(KernelTable& table) {
  table.update_low_bit[0] = update_sgd;
  table.update_low_bit[1] = update_adam<false>;
  table.update_low_bit[2] = update_adam<true>;
  table.rounding_bits = rounding_bits;
  table.round_to_bf16 = round_to_bf16;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
