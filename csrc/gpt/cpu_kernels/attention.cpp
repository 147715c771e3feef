// Causal attention of one head, in blocks of rows: only the columns up to the diagonal block are
// computed, and no more than one block of scores exists. The backward pass computes the weights
// again from the saved log-sum-exp (Dao et al. 2022, arXiv:2205.14135) and the dropout mask again
// from its counter.
//   S = Q K^T / sqrt(width),  P = softmax(S),  O = (P * mask) V
//   dV = (P * mask)^T dO,  dP = dO V^T * mask,  dS = P * (dP - rowsum(dO * O)),
//   dQ = dS K / sqrt(width),  dK = dS^T Q / sqrt(width)
#include <algorithm>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/kernels/vector.h"
#include "element/exponential.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr std::int64_t kBlock = 64;  // rows of scores at a time

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

struct Scratch {
  float* scores;       // [kBlock, length]
  float* weights;      // [kBlock, length], backward: the gradient of the weights
  float* multipliers;  // [length]
  float* packed;       // for the matrix products

  Scratch(float* base, std::int64_t length)
      : scores(base),
        weights(scores + kBlock * length),
        multipliers(weights + kBlock * length),
        packed(multipliers + length) {}
};

std::int64_t scratch_floats(std::int64_t length, std::int64_t width) {
  const std::size_t packed = std::max({gemm_serial_workspace_floats(kBlock, length, width),
                                       gemm_serial_workspace_floats(kBlock, width, length),
                                       gemm_serial_workspace_floats(length, width, kBlock)});
  return (2 * kBlock + 1) * length + static_cast<std::int64_t>(packed);
}

// c = op(a) op(b), or c += with add.
void multiply(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float* c,
              std::int64_t ldc, bool add, float* packed) {
  gemm_serial({transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, add, nullptr}, packed);
}

// The softmax of scores[0, allowed) in place, 0 behind it up to `columns`; returns log-sum-exp.
float softmax_row(float* row, std::int64_t allowed, std::int64_t columns, float scale) {
  float maximum = -kInfinite<float>;
#pragma omp simd reduction(max : maximum)
  for (std::int64_t j = 0; j < allowed; ++j) maximum = row[j] > maximum ? row[j] : maximum;
  maximum *= scale;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < allowed; ++j) {
    row[j] = exp_nonpositive(multiply_add(row[j], scale, -maximum));
    sum += row[j];
  }
  const float inverse = 1.0f / sum;
#pragma omp simd
  for (std::int64_t j = 0; j < allowed; ++j) row[j] *= inverse;
  std::fill(row + allowed, row + columns, 0.0f);
  return maximum + std::log(sum);
}

void drop_row(const Attention& a, const Head& head, std::int64_t i, float* multipliers) {
  kernels().dropout_multipliers(a.dropout, head.mask_offset + i * a.length, i + 1, multipliers);
}

void attention(const Attention& a, std::int64_t batch, std::int64_t head_index, float* base) {
  const Head head(a, batch, head_index);
  const Scratch scratch(base, a.length);
  const float* query = a.qkv + head.offset;
  const float* key = query + head.part;
  const float* value = key + head.part;
  float* out = a.out + head.out_offset;
  for (std::int64_t first = 0; first < a.length; first += kBlock) {
    const std::int64_t rows = std::min(kBlock, a.length - first);
    const std::int64_t columns = first + rows;
    multiply(false, true, rows, columns, a.width, query + first * head.stride, head.stride, key,
             head.stride, scratch.scores, columns, false, scratch.packed);
    for (std::int64_t r = 0; r < rows; ++r) {
      float* row = scratch.scores + r * columns;
      const std::int64_t i = first + r;
      a.log_sum[head.log_sum_offset + i] = softmax_row(row, i + 1, columns, head.scale);
      if (a.drop) {
        drop_row(a, head, i, scratch.multipliers);
#pragma omp simd
        for (std::int64_t j = 0; j <= i; ++j) row[j] *= scratch.multipliers[j];
      }
    }
    multiply(false, false, rows, a.width, columns, scratch.scores, columns, value, head.stride,
             out + first * head.out_stride, head.out_stride, false, scratch.packed);
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

void attention_backward(const AttentionBackward& task, std::int64_t batch, std::int64_t head_index,
                        float* base) {
  const Attention& a = task.forward;
  const Head head(a, batch, head_index);
  const Scratch scratch(base, a.length);
  const float* query = a.qkv + head.offset;
  const float* key = query + head.part;
  const float* value = key + head.part;
  float* grad_query = task.grad_qkv + head.offset;
  float* grad_key = grad_query + head.part;
  float* grad_value = grad_key + head.part;
  const float* out = a.out + head.out_offset;
  const float* grad_out = task.grad_out + head.out_offset;
  for (std::int64_t i = 0; i < a.length; ++i) {
    std::fill_n(grad_key + i * head.stride, a.width, 0.0f);
    std::fill_n(grad_value + i * head.stride, a.width, 0.0f);
  }
  for (std::int64_t first = 0; first < a.length; first += kBlock) {
    const std::int64_t rows = std::min(kBlock, a.length - first);
    const std::int64_t columns = first + rows;
    const float* block_query = query + first * head.stride;
    const float* block_grad_out = grad_out + first * head.out_stride;
    multiply(false, true, rows, columns, a.width, block_query, head.stride, key, head.stride,
             scratch.scores, columns, false, scratch.packed);
    multiply(false, true, rows, columns, a.width, block_grad_out, head.out_stride, value,
             head.stride, scratch.weights, columns, false, scratch.packed);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t i = first + r;
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t j = 0; j < a.width; ++j) {
        dot += grad_out[i * head.out_stride + j] * out[i * head.out_stride + j];
      }
      backward_row(a, head, i, columns, dot, scratch.scores + r * columns,
                   scratch.weights + r * columns, scratch.multipliers);
    }
    multiply(true, false, columns, a.width, rows, scratch.scores, columns, block_grad_out,
             head.out_stride, grad_value, head.stride, true, scratch.packed);
    multiply(false, false, rows, a.width, columns, scratch.weights, columns, key, head.stride,
             grad_query + first * head.stride, head.stride, false, scratch.packed);
    multiply(true, false, columns, a.width, rows, scratch.weights, columns, block_query,
             head.stride, grad_key, head.stride, true, scratch.packed);
  }
}

}  // namespace

void fill_attention_kernels(GptKernelTable& table) {
  table.attention = attention;
  table.attention_backward = attention_backward;
  table.attention_scratch_floats = scratch_floats;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
