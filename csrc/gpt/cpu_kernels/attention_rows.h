// The rows of one head's attention: from scores to weights and back. Weights are computed up to
// whole vectors; beyond the diagonal they are 0. Included only by files that are compiled once per
// instruction set.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/isa.h"
#include "cpu/kernels/partial_vector.h"
#include "cpu/kernels/transpose.h"
#include "element/exponential.h"
#include "gpt/cpu_kernels/table.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

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

std::int64_t whole_vectors(std::int64_t columns) {
  return (columns + kLanes - 1) / kLanes * kLanes;
}

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

// log x, for sums of exponentials of which the largest is 1 but for a rounding.
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
  store_first(a.log_sum + head.log_sum_offset + i, rows, maxima + logarithm(sums));
  store_first(inverse, rows, 1.0f / sums);
}

// Turns row i of the scores, for columns up to `columns`, into dropped weights (scores) and the
// gradient of the scores (weights).
void backward_row(const Attention& a, const Head& head, std::int64_t i, std::int64_t columns,
                  float grad_dot_out, float* __restrict scores, float* __restrict weights,
                  float* multipliers) {
  const float log_sum = a.log_sum[head.log_sum_offset + i];
  const std::int64_t last = i / kLanes * kLanes, size = last + kLanes;
  const float* const factors = a.drop ? drop_row(a, head, i, size, multipliers) : nullptr;
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
  // Here, so that what is not finite stays within its row and its columns.
  store_vector(scores + last, up_to_diagonal(load_vector(scores + last), i, 0.0f));
  store_vector(weights + last, up_to_diagonal(load_vector(weights + last), i, 0.0f));
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

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
