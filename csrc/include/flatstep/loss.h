// Cross-entropy of logits with index targets, and its gradient.
//
// For a row x of V logits and a target t, with p = softmax(x):
//   loss = (1 - s) * -log p_t  +  s / V * sum_j -log p_j
//   d loss / d x_j = p_j - (1 - s) * [j == t] - s / V
// where s is the label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7). Classes whose
// logit is -inf are masked: they take no part in the smoothing, and V counts the others.
#pragma once

#include <cstdint>
#include <optional>

#include "flatstep/export.h"
#include "flatstep/types.h"

namespace flatstep {

enum class Reduction { mean, sum, none };
enum class OnEmpty { zero, nan };

struct CrossEntropyOptions {
  Reduction reduction = Reduction::mean;
  double label_smoothing = 0.0;  // in [0, 1)
  std::int64_t ignore_index = -100;
  std::optional<double> divisor;     // replaces the number of valid targets under Reduction::mean
  OnEmpty on_empty = OnEmpty::zero;  // the mean over no valid target: 0 or NaN
  double grad_output = 1.0;          // gradient of the final objective by the loss (mean, sum)
};

// Buffers to fill; each may be null. `loss`, `lse` and `grad_output` hold one element a row, f64
// for f64 logits and f32 for all others. `grad` has the type of the logits; it may be the logits
// buffer itself, and must not overlap it otherwise.
struct CrossEntropyOutputs {
  void* loss = nullptr;               // [rows], Reduction::none
  void* lse = nullptr;                // [rows] log-sum-exp; 0 for ignored rows
  void* grad = nullptr;               // [rows, cols]
  std::int64_t grad_row_stride = 0;   // 0 means cols
  const void* grad_output = nullptr;  // [rows], Reduction::none: the upstream gradient of each row
};

struct CrossEntropyResult {
  double loss = 0.0;         // the mean or the sum; the sum under Reduction::none
  std::int64_t n_valid = 0;  // rows whose target is not ignore_index
};

// Bytes of workspace that cross_entropy needs for so many rows.
FLATSTEP_API std::size_t cross_entropy_workspace_bytes(std::int64_t rows);

// logits: [rows, cols], f32, f64 or bf16. targets: [rows], i32 or i64.
// Arithmetic is f32 for f32 and bf16 logits (sums in f64), f64 for f64; one rounding to the output.
// A row's results have the same bits in any batch and for any number of threads.
// Throws OutOfRange for a target outside [0, cols) that is not ignore_index, InvalidArgument for
// anything else that is wrong, both before a byte is written.
FLATSTEP_API CrossEntropyResult cross_entropy(const ConstMatrix& logits, const IndexArray& targets,
                                              const CrossEntropyOptions& options,
                                              const CrossEntropyOutputs& outputs, void* workspace,
                                              std::size_t workspace_bytes, Device device = {});

}  // namespace flatstep
