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

struct GptKernelTable {
  // One head of one sequence; `scratch` holds attention_scratch_floats(length, width).
  void (*attention)(const Attention&, std::int64_t batch, std::int64_t head, float* scratch);
  void (*attention_backward)(const AttentionBackward&, std::int64_t batch, std::int64_t head,
                             float* scratch);
  std::int64_t (*attention_scratch_floats)(std::int64_t length, std::int64_t width);

  // Rows [begin, end) of [rows, width].
  void (*layer_norm)(const float* x, const float* weight, const float* bias, std::int64_t width,
                     std::int64_t begin, std::int64_t end, float* out, float* mean, float* rstd);
  // grad_x = the gradient through the norm, added to what grad_x holds with `add`. The gradients
  // of weight and bias over these rows are written to partial[0, width) and [width, 2 width).
  void (*layer_norm_backward)(const float* grad_out, const float* x, const float* weight,
                              const float* mean, const float* rstd, std::int64_t width,
                              std::int64_t begin, std::int64_t end, bool add, float* grad_x,
                              float* partial);

  void (*gelu)(const float* x, float* out, std::int64_t size);
  // grad = grad * gelu'(x)
  void (*gelu_backward)(const float* x, float* grad, std::int64_t size);

  // Columns [begin, end) of a product with matrix [depth, columns]; each element is summed in the
  // order of the depth.
  void (*rows_times_matrix)(const RowProduct&, std::int64_t begin, std::int64_t end);
  // The same with matrix [columns, depth], in the order of the lanes of a vector.
  void (*rows_dot_rows)(const RowProduct&, std::int64_t begin, std::int64_t end);
  // softmax(scale * row) in place.
  void (*softmax)(float* row, std::int64_t size, float scale);
};

}  // namespace flatstep::cpu
