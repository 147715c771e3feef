// Causal attention of one head, in blocks of rows: only the columns up to the diagonal block are
// computed. Keys and values are packed for the matrix product once a head. The backward pass
// computes the weights again from the saved log-sum-exp (Dao et al. 2022, arXiv:2205.14135) and the
// dropout mask again from its counter, and keeps those of a group of blocks: a product with many
// rows of them is faster than many with few.
//   S = Q K^T / sqrt(width),  P = softmax(S),  O = (P * mask) V
//   dV = (P * mask)^T dO,  dP = dO V^T * mask,  dS = P * (dP - rowsum(dO * O)),
//   dQ = dS K / sqrt(width),  dK = dS^T Q / sqrt(width)
#include <algorithm>

#include "gpt/cpu_kernels/attention_rows.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Rows of scores at a time: a few panels of the matrix product; and of a group, whole blocks.
constexpr std::int64_t kBlock = 36;
constexpr std::int64_t kGroup = 4 * kBlock;

std::int64_t whole_panels(std::int64_t columns) {
  const std::int64_t panel = kernels().gemm_columns;
  return (columns + panel - 1) / panel * panel;
}

std::int64_t packed_floats(std::int64_t columns, std::int64_t depth) {
  return whole_panels(columns) * depth;
}

// Between rows of scores: a cache line more than whole panels, so that a column of them does not
// crowd a few sets of the nearest cache.
std::int64_t score_stride(std::int64_t columns) { return whole_panels(columns) + 16; }

struct Scratch {
  float* scores;       // [kGroup, stride]
  float* weights;      // the same, backward: the gradient of the weights
  float* multipliers;  // of mask_rows(length), and up to a whole vector
  // Packed operands of the products.
  float* across;        // K^T
  float* value_across;  // V^T, backward only
  float* along;         // V, backward: K
  float* group;         // of one group: gradient of the output, then the queries
  std::int64_t floats;

  // A null base only counts the floats.
  Scratch(float* base, std::int64_t length, std::int64_t width) : floats(0) {
    const auto take = [&](std::int64_t size) {
      float* at = base == nullptr ? nullptr : base + floats;
      floats += (size + 15) / 16 * 16;
      return at;
    };
    const std::int64_t rows = std::min(kGroup, length);
    scores = take(rows * score_stride(length));
    weights = take(rows * score_stride(length));
    multipliers = take((mask_rows(length) - 1) * length + whole_vectors(length));
    across = take(packed_floats(length, width));
    value_across = take(packed_floats(length, width));
    along = take(packed_floats(width, length));
    group = take(packed_floats(width, rows));
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

// The second operand of products, packed, from a row of it on.
struct PackedOperand {
  const float* data;
  std::int64_t panel_step;

  PackedOperand from(std::int64_t row) const {
    return {data + row * kernels().gemm_columns, panel_step};
  }
};

PackedOperand pack(const Operand& b, std::int64_t columns, std::int64_t depth, float* to) {
  Gemm call{};
  call.transpose_b = b.transpose;
  call.n = columns;
  call.k = depth;
  call.b = b.data;
  call.ldb = b.stride;
  kernels().gemm_pack_b(call, 0, columns, 0, depth, to);
  return {to, depth};
}

// c = op(a) b, or c += with add, for the first n columns and the first k rows of b.
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
                             {b.data, b.panel_step, kernels().gemm_columns, false},
                             true});
}

void attention(const Attention& a, std::int64_t batch, std::int64_t head_index, float* base) {
  const Head head(a, batch, head_index);
  const Scratch scratch(base, a.length, a.width);
  const float* query = a.qkv + head.offset;
  const float* key = query + head.part;
  const float* value = key + head.part;
  const PackedOperand keys = pack({key, head.stride, true}, a.length, a.width, scratch.across);
  const PackedOperand values = pack({value, head.stride, false}, a.width, a.length, scratch.along);
  const std::int64_t stride = score_stride(a.length);
  for (std::int64_t first = 0; first < a.length; first += kBlock) {
    const std::int64_t rows = std::min(kBlock, a.length - first);
    const std::int64_t columns = first + rows;
    multiply({query + first * head.stride, head.stride, false}, keys, rows, whole_panels(columns),
             a.width, scratch.scores, stride, false);
    float inverse[kBlock];
    for (std::int64_t r = 0; r < rows; r += kLanes) {
      dropped_rows(a, head, first + r, std::min(kLanes, rows - r), columns,
                   scratch.scores + r * stride, stride, scratch.multipliers, inverse + r);
    }
    float* out = a.out + head.out_offset + first * head.out_stride;
    multiply({scratch.scores, stride, false}, values, rows, a.width, columns, out, head.out_stride,
             false);
    for (std::int64_t r = 0; r < rows; ++r) {
#pragma omp simd
      for (std::int64_t j = 0; j < a.width; ++j) out[r * head.out_stride + j] *= inverse[r];
    }
  }
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
  const std::int64_t stride = score_stride(a.length);
  for (std::int64_t group = 0; group < a.length; group += kGroup) {
    const std::int64_t end = std::min(group + kGroup, a.length);
    for (std::int64_t first = group; first < end; first += kBlock) {
      const std::int64_t rows = std::min(kBlock, end - first);
      const std::int64_t columns = first + rows, panels = whole_panels(columns);
      float* scores = scratch.scores + (first - group) * stride;
      float* weights = scratch.weights + (first - group) * stride;
      multiply({query + first * head.stride, head.stride, false}, keys_across, rows, panels,
               a.width, scores, stride, false);
      multiply({grad_out + first * head.out_stride, head.out_stride, false}, values_across, rows,
               panels, a.width, weights, stride, false);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t at = (first + r) * head.out_stride;
        backward_row(a, head, first + r, columns, grad_dot_out(grad_out + at, out + at, a.width),
                     scores + r * stride, weights + r * stride, scratch.multipliers);
      }
      multiply({weights, stride, false}, keys, rows, a.width, columns,
               grad_query + first * head.stride, head.stride, false);
    }
    // The rows of the group from the diagonal on add to the gradients of a block of keys.
    const auto add_to = [&](float* grad, const float* factors, const Operand& others) {
      const PackedOperand packed = pack(others, a.width, end - group, scratch.group);
      for (std::int64_t first = 0; first < end; first += kBlock) {
        const std::int64_t row = std::max(first, group) - group;
        multiply({factors + row * stride + first, stride, true}, packed.from(row),
                 std::min(kBlock, end - first), a.width, end - group - row,
                 grad + first * head.stride, head.stride, first < group);
      }
    };
    add_to(grad_value, scratch.scores,
           {grad_out + group * head.out_stride, head.out_stride, false});
    add_to(grad_key, scratch.weights, {query + group * head.stride, head.stride, false});
  }
}

}  // namespace

void fill_attention_kernels(GptKernelTable& table) {
  table.attention = attention;
  table.attention_backward = attention_backward;
  table.attention_scratch_floats = scratch_floats;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
