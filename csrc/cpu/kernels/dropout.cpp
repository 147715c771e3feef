// Philox4x32-10 over blocks of four indices; the counter is laid out in flatstep/dropout.h.
#include <algorithm>

#include "core/dropout_task.h"
#include "cpu/kernels/philox_lanes.h"
#include "cpu/kernels/tables.h"
#include "cpu/kernels/transpose.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Counters worked on side by side, and for what a few of them give.
constexpr int kBlocks = 32, kFewBlocks = 16;

template <int kCounters>
void philox_blocks(const DropoutTask& task, std::int64_t first_block,
                   PhiloxLanes<kCounters>& lanes) {
  const PhiloxWord4 counter = dropout_counter(task, static_cast<std::uint64_t>(first_block));
  for (int word = 0; word < 4; ++word) {
    for (int i = 0; i < kCounters; ++i) lanes.word[word][i] = counter.word[word];
  }
  for (int i = 0; i < kCounters; ++i) lanes.word[0][i] += static_cast<std::uint32_t>(i);
  if (lanes.word[0][kCounters - 1] < lanes.word[0][0]) {  // the lower word of the block has wrapped
    for (int i = 0; i < kCounters; ++i) {
      lanes.word[1][i] = dropout_counter(task, static_cast<std::uint64_t>(first_block + i)).word[1];
    }
  }
  philox_lanes<kPhiloxRounds>(task.seed, lanes);
}

// group[4 * i + word] of all counters i: 4 x 4 at a time.
template <int kCounters>
void multipliers_of(const DropoutTask& task, const PhiloxLanes<kCounters>& words, float* group) {
  using Bits = Vector<std::uint32_t>;
  const Bits threshold = splat<Bits>(task.threshold);
  const Bits scale = bits_of(splat<Vector<float>>(task.scale));
  alignas(64) float chosen[4][kCounters];
  for (int word = 0; word < 4; ++word) {
    for (int i = 0; i < kCounters; i += static_cast<int>(kLanesOf<float>)) {
      const Bits random = load_vector(&words.word[word][i]);
      store_vector<float>(&chosen[word][i], float_of((Bits)(random >= threshold) & scale));
    }
  }
  for (int i = 0; i < kCounters; i += 4) {
    transpose_four(&chosen[0][i], kCounters, group + 4 * i, 4);
  }
}

// The multipliers of those counters from `block` on that lie in [first, end).
template <int kCounters>
void write_multipliers(const DropoutTask& task, std::int64_t block, std::int64_t first,
                       std::int64_t end, float* multipliers) {
  PhiloxLanes<kCounters> words;
  philox_blocks(task, block, words);
  const std::int64_t begin = block * 4, stop = (block + kCounters) * 4;
  if (begin >= first && stop <= end) {
    multipliers_of(task, words, multipliers + (begin - first));
    return;
  }
  alignas(64) float group[4 * kCounters];
  multipliers_of(task, words, group);
  const std::int64_t from = std::max(first, begin);
  std::memcpy(multipliers + (from - first), group + (from - begin),
              static_cast<std::size_t>(std::min(end, stop) - from) * sizeof(float));
}

void dropout_multipliers(const DropoutTask& task, std::int64_t first, std::int64_t size,
                         float* multipliers) {
  const std::int64_t end = first + size;
  std::int64_t block = first / 4;
  for (; (block + kFewBlocks) * 4 < end; block += kBlocks) {
    write_multipliers<kBlocks>(task, block, first, end, multipliers);
  }
  if (block * 4 < end) write_multipliers<kFewBlocks>(task, block, first, end, multipliers);
}

}  // namespace

void fill_dropout_kernels(KernelTable& table) { table.dropout_multipliers = dropout_multipliers; }

}  // namespace flatstep::cpu::FLATSTEP_ISA
