// Parts of a product as the kernel takes them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm_blocking.h"
#include "cpu/isa.h"
#include "cpu/kernels/table.h"

namespace flatstep::cpu {

inline GemmOperand operand_a(const Gemm& call, const float* packed, std::int64_t row,
                             const Range& depth) {
  if (packed != nullptr) return {packed, depth.size, kernels().gemm_rows, false};
  const auto* a = static_cast<const float*>(call.a);
  if (call.transpose_a) return {a + depth.begin * call.lda + row, 1, call.lda, false};
  return {a + row * call.lda + depth.begin, call.lda, call.lda, true};
}

inline GemmOperand operand_b(const Gemm& call, const float* packed, std::int64_t column,
                             const Range& depth) {
  if (packed != nullptr) return {packed, depth.size, kernels().gemm_columns, false};
  return {static_cast<const float*>(call.b) + depth.begin * call.ldb + column, 1, call.ldb, false};
}

// The tile, stretch by stretch of k, so that panels of A stay in the second-level cache.
inline void multiply_tile(const Gemm& call, GemmTile tile, const Range& depth) {
  const std::int64_t step = kernels().gemm_depth;
  for (std::int64_t p = 0; p < depth.size; p += step) {
    tile.depth = std::min(step, depth.size - p);
    tile.first = depth.begin + p == 0;
    kernels().gemm_tile(call, tile);
    tile.a.data += step * (tile.a.row_major ? 1 : tile.a.step);
    tile.b.data += step * tile.b.step;
  }
}

}  // namespace flatstep::cpu
