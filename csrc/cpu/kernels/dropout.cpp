// Philox4x32-10 over blocks of four indices; the counter is laid out in flatstep/dropout.h.
#include <algorithm>

#include "core/philox.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Counters worked on side by side; the inner loops are over them, so they vectorise.
constexpr int kBlocks = 32;

struct PhiloxWords {
  std::uint32_t word[4][kBlocks];
};

void philox_blocks(const DropoutTask& task, std::int64_t first_block, PhiloxWords& out) {
  alignas(64) std::uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  for (int i = 0; i < kBlocks; ++i) {
    const std::uint64_t block = static_cast<std::uint64_t>(first_block + i);
    c0[i] = static_cast<std::uint32_t>(block);
    c1[i] = static_cast<std::uint32_t>((block >> 32) & 0xffffu) |
            static_cast<std::uint32_t>(((task.step >> 32) & 0xffffu) << 16);
    c2[i] = static_cast<std::uint32_t>(task.step);
    c3[i] = task.site;
  }
  std::uint32_t key0 = static_cast<std::uint32_t>(task.seed);
  std::uint32_t key1 = static_cast<std::uint32_t>(task.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma omp simd
    for (int i = 0; i < kBlocks; ++i) philox_round(c0[i], c1[i], c2[i], c3[i], key0, key1);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  std::memcpy(out.word[0], c0, sizeof c0);
  std::memcpy(out.word[1], c1, sizeof c1);
  std::memcpy(out.word[2], c2, sizeof c2);
  std::memcpy(out.word[3], c3, sizeof c3);
}

void dropout_multipliers(const DropoutTask& task, std::int64_t first, std::int64_t size,
                         float* multipliers) {
  PhiloxWords words;
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
