// Causal attention of one head, in blocks of rows: only the columns up to the diagonal block are
// computed, and no more than one block of scores exists. Keys and values are packed for the matrix
// product once a head. The backward pass computes the weights again from the saved log-sum-exp (Dao
// et al. 2022, arXiv:2205.14135) and the dropout mask again from its counter.
//   S = Q K^T / sqrt(width),  P = softmax(S),  O = (P * mask) V
//   dV = (P * mask)^T dO,  dP = dO V^T * mask,  dS = P * (dP - rowsum(dO * O)),
//   dQ = dS K / sqrt(width),  dK = dS^T Q / sqrt(width)
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/kernels/vector.h"
#include "element/exponential.h"
#include "gpt/cpu_kernels/softmax.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Rows of scores at a time: a few panels of the matrix product.
constexpr std::int64_t kBlock = 48;

// Where one head of one sequence lies in the interleaved buffers.
struct Head {
  std::int64_t stride;  // between positions in qkv
  std::int64_t offset;  // of the query of position 0; key and value follow at `part` and 2 `part`
  std::int64_t part;
  std::int64_t out_stride, out_offset;
  std::int64_t log_sum_offset;
  std::int64_t mask_offset;
  float scale;

  Head(const Attention& a, std::int64_t batch, std::int64_t head)
      : stride(3 * a.heads * a.width),
        offset(batch * a.length * stride + head * a.width),
        part(a.heads * a.width),
        out_stride(a.heads * a.width),
        out_offset(batch * a.length * out_stride + head * a.width),
        log_sum_offset((batch * a.heads + head) * a.length),
        mask_offset((batch * a.heads + head) * a.length * a.length),
        scale(1.0f / std::sqrt(static_cast<float>(a.width))) {}
};

std::int64_t whole_panels(std::int64_t columns) {
  const std::int64_t panel = kernels().gemm_columns;
  return (columns + panel - 1) / panel * panel;
}

std::int64_t packed_floats(std::int64_t columns, std::int64_t depth) {
  return whole_panels(columns) * depth;
}

struct Scratch {
  float* scores;       // [kBlock, whole panels]
  float* weights;      // the same, backward: the gradient of the weights
  float* multipliers;  // [length]
  // Packed operands of the products.
  float* across;        // K^T
  float* value_across;  // V^T, backward only
  float* along;         // V, backward: K
  float* block;         // of one block: gradient of the output, then the queries
  std::int64_t floats;

  // A null base only counts the floats.
  Scratch(float* base, std::int64_t length, std::int64_t width) : floats(0) {
    const auto take = [&](std::int64_t size) {
      float* at = base == nullptr ? nullptr : base + floats;
      floats += (size + 15) / 16 * 16;
      return at;
    };
    scores = take(kBlock * whole_panels(length));
    weights = take(kBlock * whole_panels(length));
    multipliers = take(length);
    across = take(packed_floats(length, width));
    value_across = take(packed_floats(length, width));
    along = take(packed_floats(width, length));
    block = take(packed_floats(width, kBlock));
  }
};

std::int64_t scratch_floats(std::int64_t length, std::int64_t width) {
  return Scratch(nullptr, length, width).floats;
}

// A matrix in place, or its transpose.
struct Operand {
  const float* data;
  std::int64_t stride;
  bool transpose;
};

// The second operand of products, packed: `columns` of them, with `depth` elements each.
struct PackedOperand {
  const float* data;
  std::int64_t columns, depth;
};

PackedOperand pack(const Operand& b, std::int64_t columns, std::int64_t depth, float* to) {
  Gemm call{};
  call.transpose_b = b.transpose;
  call.n = columns;
  call.k = depth;
  call.b = b.data;
  call.ldb = b.stride;
  kernels().gemm_pack_b(call, 0, columns, 0, depth, to);
  return {to, columns, depth};
}

// c = op(a) b, or c += with add, for the first n columns and the first k elements of depth of b.
void multiply(const Operand& a, const PackedOperand& b, std::int64_t m, std::int64_t n,
              std::int64_t k, float* c, std::int64_t ldc, bool add) {
  Gemm call{};
  call.m = m;
  call.n = n;
  call.k = k;
  call.c = c;
  call.ldc = ldc;
  call.accumulate = add;
  const std::int64_t panel_step = a.transpose ? 1 : a.stride;
  kernels().gemm_tile(call, {0,
                             m,
                             0,
                             n,
                             k,
                             {a.data, panel_step, a.stride, !a.transpose},
                             {b.data, b.depth, kernels().gemm_columns, false},
                             true});
}

void drop_row(const Attention& a, const Head& head, std::int64_t i, float* multipliers) {
  kernels().dropout_multipliers(a.dropout, head.mask_offset + i * a.length, i + 1, multipliers);
}

void attention(const Attention& a, std::int64_t batch, std::int64_t head_index, float* base) {
  const Head head(a, batch, head_index);
  const Scratch scratch(base, a.length, a.width);
  const float* query = a.qkv + head.offset;
  const float* key = query + head.part;
  const float* value = key + head.part;
  const PackedOperand keys = pack({key, head.stride, true}, a.length, a.width, scratch.across);
  const PackedOperand values = pack({value, head.stride, false}, a.width, a.length, scratch.along);
  float* out = a.out + head.out_offset;
  for (std::int64_t first = 0; first < a.length; first += kBlock) {
    const std::int64_t rows = std::min(kBlock, a.length - first);
    const std::int64_t columns = first + rows;
    const std::int64_t stride = whole_panels(columns);
    multiply({query + first * head.stride, head.stride, false}, keys, rows, stride, a.width,
             scratch.scores, stride, false);
    for (std::int64_t r = 0; r < rows; ++r) {
      float* row = scratch.scores + r * stride;
      const std::int64_t i = first + r;
      a.log_sum[head.log_sum_offset + i] = softmax(row, i + 1, head.scale);
      std::fill(row + i + 1, row + columns, 0.0f);
      if (a.drop) {
        drop_row(a, head, i, scratch.multipliers);
#pragma omp simd
        for (std::int64_t j = 0; j <= i; ++j) row[j] *= scratch.multipliers[j];
      }
    }
    multiply({scratch.scores, stride, false}, values, rows, a.width, columns,
             out + first * head.out_stride, head.out_stride, false);
  }
}

// Turns a row of scores into dropped weights (scores) and the gradient of the scores (weights).
void backward_row(const Attention& a, const Head& head, std::int64_t i, std::int64_t columns,
                  float grad_dot_out, float* scores, float* weights, float* multipliers) {
  const float log_sum = a.log_sum[head.log_sum_offset + i];
  const std::int64_t allowed = i + 1;
  if (a.drop) {
    drop_row(a, head, i, multipliers);
  } else {
    std::fill(multipliers, multipliers + allowed, 1.0f);
  }
#pragma omp simd
  for (std::int64_t j = 0; j < allowed; ++j) {
    const float probability = exp_nonpositive(multiply_add(scores[j], head.scale, -log_sum));
    const float grad = multiply_add(weights[j], multipliers[j], -grad_dot_out);
    weights[j] = probability * grad * head.scale;
    scores[j] = probability * multipliers[j];
  }
  std::fill(scores + allowed, scores + columns, 0.0f);
  std::fill(weights + allowed, weights + columns, 0.0f);
}

// rowsum(dO * O) of position i.
float grad_dot_out(const float* grad_out, const float* out, std::int64_t width) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < width; ++j) dot += grad_out[j] * out[j];
  return dot;
}

void attention_backward(const AttentionBackward& task, std::int64_t batch, std::int64_t head_index,
                        float* base) {
  const Attention& a = task.forward;
  const Head head(a, batch, head_index);
  const Scratch scratch(base, a.length, a.width);
  const float* query = a.qkv + head.offset;
  const float* key = query + head.part;
  const float* value = key + head.part;
  float* grad_query = task.grad_qkv + head.offset;
  float* grad_key = grad_query + head.part;
  float* grad_value = grad_key + head.part;
  const float* out = a.out + head.out_offset;
  const float* grad_out = task.grad_out + head.out_offset;
  const PackedOperand keys_across =
      pack({key, head.stride, true}, a.length, a.width, scratch.across);
  const PackedOperand values_across =
      pack({value, head.stride, true}, a.length, a.width, scratch.value_across);
  const PackedOperand keys = pack({key, head.stride, false}, a.width, a.length, scratch.along);
  for (std::int64_t i = 0; i < a.length; ++i) {
    std::fill_n(grad_key + i * head.stride, a.width, 0.0f);
    std::fill_n(grad_value + i * head.stride, a.width, 0.0f);
  }
  for (std::int64_t first = 0; first < a.length; first += kBlock) {
    const std::int64_t rows = std::min(kBlock, a.length - first);
    const std::int64_t columns = first + rows;
    const std::int64_t stride = whole_panels(columns);
    const Operand block_query{query + first * head.stride, head.stride, false};
    const Operand block_grad{grad_out + first * head.out_stride, head.out_stride, false};
    multiply(block_query, keys_across, rows, stride, a.width, scratch.scores, stride, false);
    multiply(block_grad, values_across, rows, stride, a.width, scratch.weights, stride, false);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at = (first + r) * head.out_stride;
      backward_row(a, head, first + r, columns, grad_dot_out(grad_out + at, out + at, a.width),
                   scratch.scores + r * stride, scratch.weights + r * stride, scratch.multipliers);
    }
    multiply({scratch.scores, stride, true}, pack(block_grad, a.width, rows, scratch.block),
             columns, a.width, rows, grad_value, head.stride, true);
    multiply({scratch.weights, stride, false}, keys, rows, a.width, columns,
             grad_query + first * head.stride, head.stride, false);
    multiply({scratch.weights, stride, true}, pack(block_query, a.width, rows, scratch.block),
             columns, a.width, rows, grad_key, head.stride, true);
  }
}

}  // namespace

void fill_attention_kernels(GptKernelTable& table) {
  table.attention = attention;
  table.attention_backward = attention_backward;
  table.attention_scratch_floats = scratch_floats;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
