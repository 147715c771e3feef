// What cross_entropy and linear_cross_entropy share: checks, and the way from sums over rows to the
// reduced loss.
#pragma once

#include "core/backend.h"
#include "core/checks.h"
#include "flatstep/loss.h"

namespace flatstep {

// The type of weights and of results for each row.
inline DType accumulation_dtype(DType logits) {
  return logits == DType::f64 ? DType::f64 : DType::f32;
}

inline std::size_t extent_bytes(std::int64_t rows, std::int64_t cols, std::int64_t stride,
                                DType dtype) {
  if (rows == 0 || cols == 0) return 0;
  return static_cast<std::size_t>(((rows - 1) * stride + cols) * size_of(dtype));
}

// Everything in the options but the contents of the weights, which the backend looks at.
void check_loss_options(const CrossEntropyOptions& options, std::int64_t rows, std::int64_t classes,
                        DType dtype, bool has_row_losses);
void check_index_array(const IndexArray& targets, std::int64_t rows);

inline LossTotals* totals_at(char* memory) { return reinterpret_cast<LossTotals*>(memory); }

// Throws what the fault is.
[[noreturn]] void throw_fault(const CrossEntropyStatus& status);

}  // namespace flatstep
