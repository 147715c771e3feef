// The exponentials of a softmax, for attention with and without a cache. The functions have
// internal linkage, as all that kernels share.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/kernels/cross_entropy_lanes.h"
#include "element/exponential.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

struct ExponentialSum {
  float maximum, sum;  // of the scaled row; of its exponentials
  float log() const { return maximum + std::log(sum); }
};

// row = exp(scale * row - maximum) in place.
inline ExponentialSum exponentials(float* row, std::int64_t size, float scale) {
  const float maximum = scale * range_of(row, size).largest;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < size; ++j) {
    row[j] = exp_nonpositive(multiply_add(row[j], scale, -maximum));
    sum += row[j];
  }
  return {maximum, sum};
}

// row = softmax(scale * row) in place.
inline void softmax(float* row, std::int64_t size, float scale) {
  const float inverse = 1.0f / exponentials(row, size, scale).sum;
#pragma omp simd
  for (std::int64_t j = 0; j < size; ++j) row[j] *= inverse;
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
