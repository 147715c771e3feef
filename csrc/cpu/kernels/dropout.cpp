// Philox4x32-10 over blocks of four indices; the counter is laid out in flatstep/dropout.h.
#include <algorithm>

#include "core/dropout_task.h"
#include "cpu/kernels/philox_lanes.h"
#include "cpu/kernels/tables.h"
#include "cpu/kernels/transpose.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Counters worked on side by side.
constexpr int kBlocks = 32;

using Words = PhiloxLanes<kBlocks>;

void philox_blocks(const DropoutTask& task, std::int64_t first_block, Words& lanes) {
  const PhiloxWord4 counter = dropout_counter(task, static_cast<std::uint64_t>(first_block));
  for (int word = 0; word < 4; ++word) {
    for (int i = 0; i < kBlocks; ++i) lanes.word[word][i] = counter.word[word];
  }
  for (int i = 0; i < kBlocks; ++i) lanes.word[0][i] += static_cast<std::uint32_t>(i);
  if (lanes.word[0][kBlocks - 1] < lanes.word[0][0]) {  // the lower word of the block has wrapped
    for (int i = 0; i < kBlocks; ++i) {
      lanes.word[1][i] = dropout_counter(task, static_cast<std::uint64_t>(first_block + i)).word[1];
    }
  }
  philox_lanes<kPhiloxRounds>(task.seed, lanes);
}

// group[4 * i + word] of all counters i: 4 x 4 at a time.
void multipliers_of(const DropoutTask& task, const Words& words, float* group) {
  using Bits = Vector<std::uint32_t>;
  const Bits threshold = splat<Bits>(task.threshold);
  const Bits scale = bits_of(splat<Vector<float>>(task.scale));
  alignas(64) float chosen[4][kBlocks];
  for (int word = 0; word < 4; ++word) {
    for (int i = 0; i < kBlocks; i += static_cast<int>(kLanesOf<float>)) {
      const Bits random = load_vector(&words.word[word][i]);
      store_vector<float>(&chosen[word][i], float_of((Bits)(random >= threshold) & scale));
    }
  }
  for (int i = 0; i < kBlocks; i += 4) transpose_four(&chosen[0][i], kBlocks, group + 4 * i, 4);
}

void dropout_multipliers(const DropoutTask& task, std::int64_t first, std::int64_t size,
                         float* multipliers) {
  Words words;
  const std::int64_t end = first + size;
  for (std::int64_t block = first / 4; block * 4 < end; block += kBlocks) {
    philox_blocks(task, block, words);
    if (block * 4 >= first && (block + kBlocks) * 4 <= end) {
      multipliers_of(task, words, multipliers + (block * 4 - first));
      continue;
    }
    alignas(64) float group[4 * kBlocks];
    multipliers_of(task, words, group);
    const std::int64_t begin = std::max(first, block * 4);
    const std::int64_t stop = std::min(end, (block + kBlocks) * 4);
    std::memcpy(multipliers + (begin - first), group + (begin - block * 4),
                static_cast<std::size_t>(stop - begin) * sizeof(float));
  }
}

}  // namespace

void fill_dropout_kernels(KernelTable& table) { table.dropout_multipliers = dropout_multipliers; }

}  // namespace flatstep::cpu::FLATSTEP_ISA
