// Philox4x32-10 over blocks of four indices; the counter is laid out in flatstep/dropout.h.
#include <algorithm>
#include <type_traits>

#include "core/dropout_task.h"
#include "cpu/kernels/philox_lanes.h"
#include "cpu/kernels/tables.h"
#include "cpu/kernels/transpose.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

using Keys = PhiloxKeys<kPhiloxRounds>;
using Words = Vector<std::uint64_t>;

constexpr std::int64_t kCounters = PhiloxHalves::kCounters, kElements = 4 * kCounters;
// Vectors of counters that are worked on side by side: as many as there are registers for.
constexpr int kAtOnce = kVectorBytes == 64 ? 4 : 3;

// The counters from `block` on, in the order in which exchange_lanes() makes a row of their words:
// the first half of them in the even lanes, the second in the odd ones.
inline __attribute__((always_inline)) PhiloxHalves counters_from(const DropoutTask& task,
                                                                 std::int64_t block) {
  Words lane;
  for (int i = 0; i < kCounters; ++i) {
    lane[i] = static_cast<std::uint64_t>(i / 2 + i % 2 * (kCounters / 2));
  }
  const Words index = lane + static_cast<std::uint64_t>(block);
  const PhiloxWord4 counter = dropout_counter(task, 0);
  return {{index, ((index >> 32) & 0xffffu) | std::uint64_t{counter.word[1]},
           splat<Words>(std::uint64_t{counter.word[2]}),
           splat<Words>(std::uint64_t{counter.word[3]})}};
}

inline Vector<float> multiplier(const DropoutTask& task, Vector<std::uint32_t> random) {
  using Bits = Vector<std::uint32_t>;
  const Bits scale = bits_of(splat<Vector<float>>(task.scale));
  return float_of((Bits)(random >= splat<Bits>(task.threshold)) & scale);
}

// The multipliers of kCount kElements indices from 4 `block` on.
template <int kCount>
void write_multipliers(const DropoutTask& task, const Keys& keys, std::int64_t block, float* to) {
  PhiloxHalves halves[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) halves[i] = counters_from(task, block + i * kCounters);
  philox_halves(keys, halves);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i, to += kElements) {
    const Words* word = halves[i].word;
    Vector<float> first = multiplier(task, side_by_side(word[0], word[1]));
    Vector<float> second = multiplier(task, side_by_side(word[2], word[3]));
    exchange_lanes<2>(first, second);
    store_vector(to, first);
    store_vector(to + kLanesOf<float>, second);
  }
}

void dropout_multipliers(const DropoutTask& dropout, std::int64_t first, std::int64_t size,
                         float* multipliers) {
  const DropoutTask task = dropout;  // a copy, which the stores cannot change
  const Keys keys(task.seed);
  std::int64_t block = first / 4;
  // At the ends, where an array has a part of them only.
  const auto write_part = [&](std::int64_t skipped) {
    alignas(kVectorBytes) float all[kElements];
    write_multipliers<1>(task, keys, block, all);
    const std::int64_t count = std::min(size, kElements - skipped);
    std::memcpy(multipliers, all + skipped, static_cast<std::size_t>(count) * sizeof(float));
    return count;
  };
  const auto advance = [&](std::int64_t vectors, std::int64_t count) {
    block += vectors * kCounters;
    multipliers += count;
    size -= count;
  };
  const auto write_all = [&](auto at_once) __attribute__((always_inline)) {
    constexpr int kCount = at_once;
    for (; size >= kCount * kElements; advance(kCount, kCount * kElements)) {
      write_multipliers<kCount>(task, keys, block, multipliers);
    }
  };
  if (size > 0 && first % 4 != 0) advance(1, write_part(first % 4));
  write_all(std::integral_constant<int, kAtOnce>{});
  write_all(std::integral_constant<int, 2>{});
  write_all(std::integral_constant<int, 1>{});
  if (size > 0) write_part(0);
}

}  // namespace

void fill_dropout_kernels(KernelTable& table) { table.dropout_multipliers = dropout_multipliers; }

}  // namespace flatstep::cpu::FLATSTEP_ISA
