// The Transformer's CPU kernels, compiled once per instruction set like those of cpu/kernels.
// Only data here, as in cpu/kernels/table.h.
#pragma once

#include <cstdint>

#include "core/tasks.h"

namespace flatstep::cpu {

// Causal self-attention of one batch of sequences. qkv is [batch, length, 3, heads, width].
struct Attention {
  std::int64_t batch, length, heads, width;
  const float* qkv;
  float* out;      // [batch, length, heads, width]
  float* log_sum;  // [batch, heads, length]: log-sum-exp of the scaled scores
  bool drop;       // dropout on the weights, index ((b * heads + h) * length + i) * length + j
  DropoutTask dropout;
  std::int64_t first_sequence;  // the b of sequence 0
};

struct AttentionBackward {
  Attention forward;      // its out and log_sum hold the results of the forward pass
  const float* grad_out;  // like out
  float* grad_qkv;        // like qkv
};

// out[rows, columns] = x[rows, depth] matrix, for few rows. Strides are those between rows.
struct RowProduct {
  const float* x;
  std::int64_t rows, x_stride, depth;
  const float* matrix;
  std::int64_t matrix_stride;
  float* out;
  std::int64_t out_stride;
};

// Dropout of single elements; without `drop` all multipliers are 1.
struct ElementDropout {
  bool drop;
  DropoutTask task;
  std::int64_t first;  // where in the mask the array begins
};

struct LayerNormBackward {
  const float *grad_out, *x, *weight, *mean, *rstd;
  std::int64_t width;
  bool add;
  float* grad_x;
  ElementDropout dropout;  // of the branch
  float* branch;           // or null
};

struct GptKernelTable {
  // One head of one sequence; `scratch` holds attention_scratch_floats(length, width).
  void (*attention)(const Attention&, std::int64_t batch, std::int64_t head, float* scratch);
  void (*attention_backward)(const AttentionBackward&, std::int64_t batch, std::int64_t head,
                             float* scratch);
  std::int64_t (*attention_scratch_floats)(std::int64_t length, std::int64_t width);

  // Rows [begin, end) of [rows, width].
  void (*layer_norm)(const float* x, const float* weight, const float* bias, std::int64_t width,
                     std::int64_t begin, std::int64_t end, float* out, float* mean, float* rstd);
  // grad_x = the gradient through the norm, added to what grad_x holds with `add`; branch =
  // grad_x with dropout, and may be grad_out. The sums over these rows are written to
  // partial[0, 3 width): gradients of weight and bias, and of what branch or else grad_x holds.
  void (*layer_norm_backward)(const LayerNormBackward&, std::int64_t begin, std::int64_t end,
                              float* partial);

  void (*gelu)(const float* x, float* out, std::int64_t size);
  // The same, and x becomes gelu'(x).
  void (*gelu_and_slope)(float* x, float* out, std::int64_t size);
  // x[j] *= factors[j]
  void (*multiply)(const float* factors, std::int64_t size, float* x);
  // out = residual + x * multiplier for elements from `first` on of the array; residual may be null
  // (0), out may be x.
  void (*add_dropout)(const ElementDropout&, const float* x, const float* residual,
                      std::int64_t first, std::int64_t size, float* out);
  // out[j] = sum over c of partials[c * stride + j] in f64, added to out with accumulate.
  void (*sum_partials)(const float* partials, std::int64_t count, std::int64_t stride,
                       std::int64_t columns, float* out, bool accumulate);
  // to[j] += from[j]
  void (*add)(const float* from, std::int64_t size, float* to);

  // Columns [begin, end) of a product with matrix [depth, columns]; each element is summed in the
  // order of the depth.
  void (*rows_times_matrix)(const RowProduct&, std::int64_t begin, std::int64_t end);
  // The same with matrix [columns, depth], in the order of the lanes of a vector.
  void (*rows_dot_rows)(const RowProduct&, std::int64_t begin, std::int64_t end);
  // softmax(scale * row) in place.
  void (*softmax)(float* row, std::int64_t size, float scale);
};

}  // namespace flatstep::cpu
