// Cross-entropy of logits with index targets, and its gradient.
//
// For a row x of V logits and a target t, with the options off: loss = -log softmax(x)_t. In full,
// with y = c tanh(x / c) under a softcap c and y = x without, lse = log sum_j exp(y_j),
// p = exp(y - lse), class weights w, token weight u, label smoothing s and z-loss z:
//   loss = u ((1 - s) w_t (lse - y_t) + s / |A| sum_{j in A} w_j (lse - y_j) + z lse^2)
//   W = (1 - s) w_t + s / |A| sum_{j in A} w_j
//   d loss / d x_j =
//       u ((W + 2 z lse) p_j - s / |A| w_j [j in A] - (1 - s) w_t [j == t]) dy_j / d x_j
// A are the classes that are not masked; a class whose logit is -inf is masked, also with softcap.
// A term whose factor is 0 is 0, whatever it multiplies. Sources: label smoothing, Szegedy et al.
// 2016 (arXiv:1512.00567, section 7); z-loss, Chowdhery et al. 2022 (arXiv:2204.02311, section 5);
// softcap, Gemma 2 (arXiv:2408.00118, section 2). Class weights with smoothing are as in PyTorch.
#pragma once

#include <cstdint>
#include <optional>

#include "flatstep/export.h"
#include "flatstep/types.h"

namespace flatstep {

enum class Reduction { mean, sum, none };
enum class OnEmpty { zero, nan };

// The arrays hold f64 for f64 logits and f32 for all others.
struct CrossEntropyOptions {
  Reduction reduction = Reduction::mean;
  double label_smoothing = 0.0;  // in [0, 1)
  std::int64_t ignore_index = -100;
  const void* class_weight = nullptr;  // [cols], finite and >= 0; null for ones
  const void* token_weight = nullptr;  // [rows], finite; null for ones
  double z_loss = 0.0;                 // >= 0
  std::optional<double> softcap;       // > 0
  // Under Reduction::mean, replaces the summed weight w_t u of the valid targets; > 0.
  std::optional<double> divisor;
  OnEmpty on_empty = OnEmpty::zero;        // the mean over no weight (divisor: no row): 0 or NaN
  double grad_output = 1.0;                // gradient of the final objective by the loss
  const void* grad_output_rows = nullptr;  // [rows], Reduction::none: by the loss of each row
};

struct CrossEntropyResult {
  double loss = 0.0;           // the mean or the sum; the sum under Reduction::none
  std::int64_t n_valid = 0;    // rows whose target is not ignore_index
  std::int64_t n_correct = 0;  // of these, rows whose target is the first of the largest logits
  double weight_sum = 0.0;     // of w_t u over the valid rows
};

// What only a look at the arrays tells, and a CUDA device therefore finds out by itself: a target
// out of range, a weight that is not finite (or negative, for class_weight), a mean over weights
// whose sum is negative.
enum class LossFault : std::int32_t { none, target, token_weight, class_weight, weight_sum };

// What a call on a CUDA device leaves behind, in the order of its stream.
struct CrossEntropyStatus {
  CrossEntropyResult result;
  LossFault fault = LossFault::none;
  std::int64_t where = 0;   // the row or class at fault
  std::int64_t target = 0;  // its target
  double value = 0.0;       // its weight, or the sum
  std::int64_t classes = 0, ignore_index = 0;
};

// The result, once the stream has come that far. Throws what the same call on the CPU would throw.
FLATSTEP_API CrossEntropyResult result_of(const CrossEntropyStatus& status);

// Buffers to fill; each may be null. `loss`, `lse` and `entropy` hold one element a row, f64 for
// f64 logits and f32 for all others, 0 for ignored rows. `grad` has the type of the logits; it may
// be the logits buffer itself, and must not overlap it otherwise.
struct CrossEntropyOutputs {
  void* loss = nullptr;              // [rows], Reduction::none
  void* lse = nullptr;               // [rows] log-sum-exp
  void* entropy = nullptr;           // [rows] of softmax(y), in nats
  void* grad = nullptr;              // [rows, cols]
  std::int64_t grad_row_stride = 0;  // 0 means cols
  // On a CUDA device, memory that it can write (its own, or pinned): the call then returns at once,
  // without a result, and can be captured in a graph. Without it the call waits for the result.
  CrossEntropyStatus* status = nullptr;
};

// Bytes of workspace that cross_entropy needs, on the CPU with the present number of threads.
FLATSTEP_API std::size_t cross_entropy_workspace_bytes(std::int64_t rows, std::int64_t cols,
                                                       DType dtype = DType::f32,
                                                       const CrossEntropyOptions& options = {},
                                                       Device device = {});

// logits: [rows, cols], f32, f64, bf16 or f16. targets: [rows], i32 or i64.
// Arithmetic is f32 for f32, bf16 and f16 logits (f64 for sums of short sums), f64 for f64; one
// rounding to the output: a 16-bit gradient is that of the same logits in f32, rounded to nearest
// even. A row's results have the same bits in any batch and for any number of threads. Error for
// f32: loss 4 ULP, gradient 8 ULP of (W + 2 z |lse|) max_j p_j times its factor; where lse is the
// sum of a largest logit and a logarithm that cancel, the size of that logit counts instead.
// Without fused multiply-add (the x86-64 baseline), half as much again. Throws OutOfRange for a
// target outside [0, cols) that is not ignore_index, InvalidArgument for anything else that is
// wrong, both before a byte is written. On a CUDA device every array and the workspace are in its
// memory, the call runs in the order of the device's stream, f64 is not supported, and a row's bits
// depend on nothing but the row.
FLATSTEP_API CrossEntropyResult cross_entropy(const ConstMatrix& logits, const IndexArray& targets,
                                              const CrossEntropyOptions& options,
                                              const CrossEntropyOutputs& outputs, void* workspace,
                                              std::size_t workspace_bytes, Device device = {});

// Buffers to fill; each may be null.
struct LinearCrossEntropyOutputs {
  float* loss = nullptr;                    // [rows], Reduction::none
  float* lse = nullptr;                     // [rows]
  float* entropy = nullptr;                 // [rows]
  void* grad_hidden = nullptr;              // [rows, width], the type of hidden
  std::int64_t grad_hidden_row_stride = 0;  // 0 means width
  float* grad_weight = nullptr;             // [classes, width]
  float* grad_bias = nullptr;               // [classes]
  bool accumulate = false;                  // add to grad_weight and grad_bias
  CrossEntropyStatus* status = nullptr;     // as in CrossEntropyOutputs
};

// Bytes of workspace for linear_cross_entropy: what all rows at once would need, but no more than
// max_bytes, and scratch for each thread after the first: a few kilobytes, half a megabyte where
// classes are many beside width; with softcap 4 * classes bytes more for each of the rows that a
// thread takes together, several where they are short (at most 128 KB). Throws InvalidArgument
// where max_bytes is too little for one row.
FLATSTEP_API std::size_t linear_cross_entropy_workspace_bytes(std::int64_t rows, std::int64_t width,
                                                              std::int64_t classes, DType dtype,
                                                              const CrossEntropyOptions& options,
                                                              std::size_t max_bytes,
                                                              Device device = {});

// cross_entropy of the logits hidden weight^T + bias, which never exist at once: the workspace
// decides how many rows of them do.
// hidden: [rows, width]; weight: [classes, width]; bias: [classes] or null; all f32, bf16 or f16
// alike. Logits, their gradient and the sums over rows are f32. Results do not depend on the number
// of threads; the gradients of weight and bias depend by their rounding on the max_bytes that the
// workspace was sized for. On a CUDA device the products are cuBLASLt's; those of 16-bit types take
// the gradient of the logits rounded to that type, with sums in f32; and where a target or weight
// is at fault, which shows too late to write nothing, the gradients of this call are zeros.
FLATSTEP_API CrossEntropyResult linear_cross_entropy(const ConstMatrix& hidden,
                                                     const ConstMatrix& weight, const void* bias,
                                                     const IndexArray& targets,
                                                     const CrossEntropyOptions& options,
                                                     const LinearCrossEntropyOutputs& outputs,
                                                     void* workspace, std::size_t workspace_bytes,
                                                     Device device = {});

}  // namespace flatstep
