// A residual and dropout in one visit. Included only by files that are compiled once per
// instruction set.
#pragma once

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/kernels/vector.h"
#include "gpt/cpu_kernels/table.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// As in GptKernelTable.
[[maybe_unused]] void add_dropout(const ElementDropout& dropout, const float* x,
                                  const float* residual, std::int64_t first, std::int64_t size,
                                  float* out) {
  if (!dropout.drop && residual != nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) out[i] = residual[i] + x[i];
    return;
  }
  if (!dropout.drop) {
    if (out != x) std::copy_n(x, size, out);
    return;
  }
  constexpr std::int64_t kBuffer = 512;
  alignas(64) float multipliers[kBuffer];
  for (std::int64_t begin = 0; begin < size; begin += kBuffer) {
    const std::int64_t count = std::min(kBuffer, size - begin);
    const float* from = x + begin;
    float* to = out + begin;
    kernels().dropout_multipliers(dropout.task, dropout.first + first + begin, count, multipliers);
    if (residual == nullptr) {
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) to[i] = from[i] * multipliers[i];
    } else {
      const float* stream = residual + begin;
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) to[i] = stream[i] + from[i] * multipliers[i];
    }
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
