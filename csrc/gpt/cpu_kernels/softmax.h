// softmax(scale * row) in place, for attention with and without a cache. The functions have
// internal linkage, as all that kernels share.
#pragma once

#include <cmath>
#include <cstdint>

#include "element/exponential.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Returns log(sum(exp(scale * row))).
inline float softmax(float* row, std::int64_t size, float scale) {
  float maximum = -kInfinite<float>;
#pragma omp simd reduction(max : maximum)
  for (std::int64_t j = 0; j < size; ++j) maximum = row[j] > maximum ? row[j] : maximum;
  maximum *= scale;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < size; ++j) {
    row[j] = exp_nonpositive(multiply_add(row[j], scale, -maximum));
    sum += row[j];
  }
  const float inverse = 1.0f / sum;
#pragma omp simd
  for (std::int64_t j = 0; j < size; ++j) row[j] *= inverse;
  return maximum + std::log(sum);
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
