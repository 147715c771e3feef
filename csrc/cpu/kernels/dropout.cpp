// Philox4x32-10 over blocks of four indices; the counter is laid out in flatstep/dropout.h.
#include <algorithm>

#include "core/dropout_task.h"
#include "cpu/kernels/philox_lanes.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Counters worked on side by side.
constexpr int kBlocks = 32;

using Words = PhiloxLanes<kBlocks>;

void philox_blocks(const DropoutTask& task, std::int64_t first_block, Words& lanes) {
  for (int i = 0; i < kBlocks; ++i) {
    const PhiloxWord4 counter = dropout_counter(task, static_cast<std::uint64_t>(first_block + i));
    for (int word = 0; word < 4; ++word) lanes.word[word][i] = counter.word[word];
  }
  philox_lanes<kPhiloxRounds>(task.seed, lanes);
}

void dropout_multipliers(const DropoutTask& task, std::int64_t first, std::int64_t size,
                         float* multipliers) {
  Words words;
  const std::int64_t end = first + size;
  for (std::int64_t block = first / 4; block * 4 < end; block += kBlocks) {
    philox_blocks(task, block, words);
    alignas(64) float group[4 * kBlocks];
    for (int i = 0; i < kBlocks; ++i) {
      for (int word = 0; word < 4; ++word) {
        group[4 * i + word] = words.word[word][i] < task.threshold ? 0.0f : task.scale;
      }
    }
    const std::int64_t begin = std::max(first, block * 4);
    const std::int64_t stop = std::min(end, (block + kBlocks) * 4);
    std::memcpy(multipliers + (begin - first), group + (begin - block * 4),
                static_cast<std::size_t>(stop - begin) * sizeof(float));
  }
}

}  // namespace

void fill_dropout_kernels(KernelTable& table) { table.dropout_multipliers = dropout_multipliers; }

}  // namespace flatstep::cpu::FLATSTEP_ISA
