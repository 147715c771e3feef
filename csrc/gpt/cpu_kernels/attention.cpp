// Causal attention of one head, in blocks of rows: only the columns up to the diagonal block are
// computed. Keys and values are packed for the matrix product once a head. The backward pass
// computes the weights again from the saved log-sum-exp (Dao et al. 2022, arXiv:2205.14135) and the
// dropout mask again from its counter, and keeps those of a group of blocks: a product with many
// rows of them is faster than many with few.
//   S = Q K^T / sqrt(width),  P = softmax(S),  O = (P * mask) V
//   dV = (P * mask)^T dO,  dP = dO V^T * mask,  dS = P * (dP - rowsum(dO * O)),
//   dQ = dS K / sqrt(width),  dK = dS^T Q / sqrt(width)
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/kernels/transpose.h"
#include "element/exponential.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Rows of scores at a time: a few panels of the matrix product; and of a group, whole blocks.
constexpr std::int64_t kBlock = 36;
constexpr std::int64_t kGroup = 4 * kBlock;

// Weights are computed up to whole vectors; beyond the diagonal they are 0.
constexpr std::int64_t kLanes = kLanesOf<float>;

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
        mask_offset(((a.first_sequence + batch) * a.heads + head) * a.length * a.length),
        scale(1.0f / std::sqrt(static_cast<float>(a.width))) {}
};

std::int64_t whole_panels(std::int64_t columns) {
  const std::int64_t panel = kernels().gemm_columns;
  return (columns + panel - 1) / panel * panel;
}

std::int64_t whole_vectors(std::int64_t columns) {
  return (columns + kLanes - 1) / kLanes * kLanes;
}

std::int64_t packed_floats(std::int64_t columns, std::int64_t depth) {
  return whole_panels(columns) * depth;
}

// Between rows of scores: a cache line more than whole panels, so that a column of them does not
// crowd a few sets of the nearest cache.
std::int64_t score_stride(std::int64_t columns) { return whole_panels(columns) + 16; }

// The rows of a mask that are made at a time: so many that a call gives what it can at once.
std::int64_t mask_rows(std::int64_t length) {
  constexpr std::int64_t kAtOnce = 128;
  return std::max<std::int64_t>(1, kAtOnce / length);
}

// x, but `beyond` in the lanes behind column i; the vector is the one that has column i.
Vector<float> up_to_diagonal(Vector<float> x, std::int64_t i, float beyond) {
  typedef std::int32_t Lanes __attribute__((vector_size(kVectorBytes)));
  Lanes lane;
  for (int j = 0; j < kLanes; ++j) lane[j] = j;
  return lane <= static_cast<std::int32_t>(i % kLanes) ? x : splat<Vector<float>>(beyond);
}

// exp(scale * x - shift), for what is not above 0 but for a rounding.
Vector<float> exponential(Vector<float> x, float scale, float shift) {
  return scaled_exp(multiply_add(x, splat<Vector<float>>(scale), splat<Vector<float>>(-shift)),
                    splat<Vector<float>>(-87.3f), 127u);
}

// log x of numbers from 1 - 2^-9 or so on.
Vector<float> logarithm(Vector<float> x) {
  alignas(kVectorBytes) float lanes[kLanes];
  store_vector(lanes, x);
  for (std::int64_t j = 0; j < kLanes; j += kLanesOf<double>) {
    store_double(lanes + j, log1p_nonnegative(load_double(lanes + j) - 1.0));
  }
  return load_vector(lanes);
}

// Zeros in whole vectors from column `from` on, up to `to` or beyond it.
void fill_zeros(float* row, std::int64_t from, std::int64_t to) {
  for (std::int64_t j = from; j < to; j += kLanes) store_vector(row + j, Vector<float>{});
}

void store_some(float* to, std::int64_t size, Vector<float> v) {
  alignas(kVectorBytes) float lanes[kLanes];
  store_vector(lanes, v);
  std::copy_n(lanes, size, to);
}

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

// The dropout multipliers of row i, for `size` elements. Rows are asked for in their order.
const float* drop_row(const Attention& a, const Head& head, std::int64_t i, std::int64_t size,
                      float* multipliers) {
  const std::int64_t rows = mask_rows(a.length), skipped = i % rows * a.length;
  if (skipped == 0) {
    kernels().dropout_multipliers(a.dropout, head.mask_offset + i * a.length,
                                  (rows - 1) * a.length + whole_vectors(rows > 1 ? a.length : size),
                                  multipliers);
  }
  return multipliers + skipped;
}

// Turns up to kLanes rows of the scores, from row i on and for columns up to `columns`, into
// exp(score - maximum), dropped; sets the log-sum-exp and the inverse of the sum before the
// dropout.
void dropped_rows(const Attention& a, const Head& head, std::int64_t i, std::int64_t rows,
                  std::int64_t columns, float* scores, std::int64_t stride, float* multipliers,
                  float* inverse) {
  Vector<float> lanes[kLanes] = {};
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    const std::int64_t last = (i + r) / kLanes * kLanes;
    Vector<float> most = up_to_diagonal(load_vector(row + last), i + r, -kInfinite<float>);
    store_vector(row + last, most);
    for (std::int64_t j = 0; j < last; j += kLanes) most = larger(load_vector(row + j), most);
    lanes[r] = most;
  }
  const Vector<float> maxima =
      head.scale * combine_lanes(lanes, [](auto x, auto y) { return larger(x, y); });
  alignas(kVectorBytes) float maximum[kLanes];
  store_vector(maximum, maxima);
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    const std::int64_t size = whole_vectors(i + r + 1);
    const float* factors = a.drop ? drop_row(a, head, i + r, size, multipliers) : nullptr;
    Vector<float> sum = {};
    for (std::int64_t j = 0; j < size; j += kLanes) {
      const Vector<float> power = exponential(load_vector(row + j), head.scale, maximum[r]);
      sum += power;
      store_vector(row + j, factors == nullptr ? power : power * load_vector(factors + j));
    }
    fill_zeros(row, size, columns);
    lanes[r] = sum;
  }
  const Vector<float> sums = combine_lanes(lanes, [](auto x, auto y) { return x + y; });
  // The largest is 1 but for a rounding, so the sum is at least that.
  store_some(a.log_sum + head.log_sum_offset + i, rows, maxima + logarithm(sums));
  store_some(inverse, rows, 1.0f / sums);
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

// Turns row i of the scores, for columns up to `columns`, into dropped weights (scores) and the
// gradient of the scores (weights).
void backward_row(const Attention& a, const Head& head, std::int64_t i, std::int64_t columns,
                  float grad_dot_out, float* __restrict scores, float* __restrict weights,
                  float* multipliers) {
  const float log_sum = a.log_sum[head.log_sum_offset + i];
  const std::int64_t last = i / kLanes * kLanes, size = last + kLanes;
  const float* const factors = a.drop ? drop_row(a, head, i, size, multipliers) : nullptr;
  store_vector(scores + last, up_to_diagonal(load_vector(scores + last), i, -kInfinite<float>));
  // A gradient that is not finite would leave NaN beyond the diagonal.
  store_vector(weights + last, up_to_diagonal(load_vector(weights + last), i, 0.0f));
  for (std::int64_t j = 0; j < size; j += kLanes) {
    const Vector<float> probability = exponential(load_vector(scores + j), head.scale, log_sum);
    Vector<float> grad = load_vector(weights + j), kept = probability;
    if (factors == nullptr) {
      grad -= grad_dot_out;
    } else {
      const Vector<float> factor = load_vector(factors + j);
      grad = multiply_add(grad, factor, splat<Vector<float>>(-grad_dot_out));
      kept *= factor;
    }
    store_vector(weights + j, probability * grad * head.scale);
    store_vector(scores + j, kept);
  }
  fill_zeros(scores, size, columns);
  fill_zeros(weights, size, columns);
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
