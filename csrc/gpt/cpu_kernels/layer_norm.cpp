// Layer normalisation (Ba et al. 2016, arXiv:1607.06450) over the last dimension, eps 1e-5:
//   xhat = (x - mean) * rstd,  out = xhat * weight + bias
//   grad_x = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = grad_out * weight
#include <algorithm>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/kernels/partial_vector.h"
#include "cpu/kernels/transpose.h"
#include "gpt/cpu_kernels/add_dropout.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr float kEpsilon = 1e-5f;

constexpr std::int64_t kLanes = kLanesOf<float>;
using V = Vector<float>;

// Rows at a time: adding the lanes takes as long for one as for kLanes of them, but many long rows
// would leave the nearest cache.
bool short_rows(std::int64_t width) { return width <= 128; }
std::int64_t rows_together(std::int64_t width) { return short_rows(width) ? kLanes : 4; }

// visit(first column, lanes) of each vector of a row; the last may have fewer lanes.
template <class Visit>
void for_each_vector(std::int64_t width, const Visit& visit) {
  std::int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) visit(j, kLanes);
  if (j < width) visit(j, width - j);
}

// The sums of the lanes of each vector, over the width.
V means(V (&lanes)[kLanes], std::int64_t width) {
  return (1.0f / static_cast<float>(width)) * combine_lanes(lanes, [](V x, V y) { return x + y; });
}

void layer_norm(const float* x, const float* weight, const float* bias, std::int64_t width,
                std::int64_t begin, std::int64_t end, float* out, float* mean, float* rstd) {
  const std::int64_t group = rows_together(width);
  for (std::int64_t first = begin; first < end; first += group) {
    const std::int64_t rows = std::min(group, end - first);
    V sums[kLanes] = {}, squares[kLanes] = {};
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* row = x + (first + i) * width;
      V sum = {};
      for_each_vector(width,
                      [&](std::int64_t j, std::int64_t n) { sum += load_first(row + j, n, 0.0f); });
      sums[i] = sum;
    }
    store_first(mean + first, rows, means(sums, width));
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* row = x + (first + i) * width;
      const float m = mean[first + i];
      V sum = {};
      for_each_vector(width, [&](std::int64_t j, std::int64_t n) {
        const V centred = load_first(row + j, n, m) - m;
        sum = multiply_add(centred, centred, sum);
      });
      squares[i] = sum;
    }
    store_first(rstd + first, rows, 1.0f / square_root(means(squares, width) + kEpsilon));
    for (std::int64_t i = first; i < first + rows; ++i) {
      const float m = mean[i], r = rstd[i];
      for_each_vector(width, [&](std::int64_t j, std::int64_t n) {
        const V normalised = (load_first(x + i * width + j, n, 0.0f) - m) * r;
        store_first(out + i * width + j, n,
                    multiply_add(normalised, load_first(weight + j, n, 0.0f),
                                 load_first(bias + j, n, 0.0f)));
      });
    }
  }
}

// Sums over `kRows` rows from row i on, of which `sums` and `projections` take those along them;
// the gradients of weight and bias are added to.
template <int kRows>
void sum_rows(const LayerNormBackward& task, std::int64_t i, V* sums, V* projections,
              float* grad_weight, float* grad_bias) {
  const std::int64_t width = task.width;
  const float *x = task.x + i * width, *upstream = task.grad_out + i * width;
  const float *mean = task.mean + i, *rstd = task.rstd + i;
  V sum[kRows] = {}, projection[kRows] = {};
  for_each_vector(width, [&](std::int64_t j, std::int64_t n) {
    const V weight = load_first(task.weight + j, n, 0.0f);
    V weight_sum = load_first(grad_weight + j, n, 0.0f),
      bias_sum = load_first(grad_bias + j, n, 0.0f);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V normalised = (load_first(x + r * width + j, n, 0.0f) - mean[r]) * rstd[r];
      const V grad = load_first(upstream + r * width + j, n, 0.0f), scaled = grad * weight;
      sum[r] += scaled;
      projection[r] = multiply_add(scaled, normalised, projection[r]);
      weight_sum = multiply_add(grad, normalised, weight_sum);
      bias_sum += grad;
    }
    store_first(grad_weight + j, n, weight_sum);
    store_first(grad_bias + j, n, bias_sum);
  });
  std::copy_n(sum, kRows, sums);
  std::copy_n(projection, kRows, projections);
}

// Up to kLanes rows of grad_x; the gradients of weight and bias are added to.
void backward_rows(const LayerNormBackward& task, std::int64_t first, std::int64_t rows,
                   float* grad_weight, float* grad_bias) {
  const std::int64_t width = task.width;
  V lanes[2][kLanes] = {};
  std::int64_t done = 0;
  // Long ones come from afar, which is quicker row by row.
  for (; short_rows(width) && done + 4 <= rows; done += 4) {
    sum_rows<4>(task, first + done, lanes[0] + done, lanes[1] + done, grad_weight, grad_bias);
  }
  for (; done < rows; ++done) {
    sum_rows<1>(task, first + done, lanes[0] + done, lanes[1] + done, grad_weight, grad_bias);
  }
  alignas(kVectorBytes) float sums[kLanes], projections[kLanes];
  store_vector(sums, means(lanes[0], width));
  store_vector(projections, means(lanes[1], width));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t at = (first + r) * width;
    const float m = task.mean[first + r], rstd = task.rstd[first + r];
    for_each_vector(width, [&](std::int64_t j, std::int64_t n) {
      const V normalised = (load_first(task.x + at + j, n, 0.0f) - m) * rstd;
      const V scaled =
          load_first(task.grad_out + at + j, n, 0.0f) * load_first(task.weight + j, n, 0.0f);
      const V before = task.add ? load_first(task.grad_x + at + j, n, 0.0f) : V{};
      const V inner = multiply_add(normalised, splat<V>(-projections[r]), scaled - sums[r]);
      store_first(task.grad_x + at + j, n, multiply_add(splat<V>(rstd), inner, before));
    });
  }
}

void layer_norm_backward(const LayerNormBackward& task, std::int64_t begin, std::int64_t end,
                         float* partial) {
  const std::int64_t width = task.width;
  std::memset(partial, 0, static_cast<std::size_t>(3 * width) * sizeof(float));
  float* branch_sum = partial + 2 * width;
  const float* branch = task.branch != nullptr ? task.branch : task.grad_x;
  const std::int64_t group = rows_together(width);
  for (std::int64_t first = begin; first < end; first += group) {
    const std::int64_t rows = std::min(group, end - first), at = first * width;
    backward_rows(task, first, rows, partial, partial + width);
    if (task.branch != nullptr) {  // the mask of several short rows at once
      add_dropout(task.dropout, task.grad_x + at, nullptr, at, rows * width, task.branch + at);
    }
    kernels().column_sum(branch + at, width, rows, width, branch_sum, true);
  }
}

}  // namespace

void fill_layer_norm_kernels(GptKernelTable& table) {
  table.layer_norm = layer_norm;
  table.layer_norm_backward = layer_norm_backward;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
