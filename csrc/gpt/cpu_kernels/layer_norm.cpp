// Layer normalisation (Ba et al. 2016, arXiv:1607.06450) over the last dimension, eps 1e-5:
//   xhat = (x - mean) * rstd,  out = xhat * weight + bias
//   grad_x = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = grad_out * weight
#include <algorithm>
#include <cstring>

#include "cpu/isa.h"
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

// The other lanes are `rest`.
V load_lanes(const float* from, std::int64_t lanes, float rest = 0.0f) {
  if (lanes == kLanes) return load_vector(from);
  V v = splat<V>(rest);
  std::memcpy(&v, from, static_cast<std::size_t>(lanes) * sizeof(float));
  return v;
}

void store_lanes(float* to, std::int64_t lanes, V v) {
  if (lanes == kLanes) return store_vector(to, v);
  std::memcpy(to, &v, static_cast<std::size_t>(lanes) * sizeof(float));
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
                      [&](std::int64_t j, std::int64_t n) { sum += load_lanes(row + j, n); });
      sums[i] = sum;
    }
    store_lanes(mean + first, rows, means(sums, width));
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* row = x + (first + i) * width;
      const float m = mean[first + i];
      V sum = {};
      for_each_vector(width, [&](std::int64_t j, std::int64_t n) {
        const V centred = load_lanes(row + j, n, m) - m;
        sum = multiply_add(centred, centred, sum);
      });
      squares[i] = sum;
    }
    store_lanes(rstd + first, rows, 1.0f / square_root(means(squares, width) + kEpsilon));
    for (std::int64_t i = first; i < first + rows; ++i) {
      const float m = mean[i], r = rstd[i];
      for_each_vector(width, [&](std::int64_t j, std::int64_t n) {
        const V normalised = (load_lanes(x + i * width + j, n) - m) * r;
        store_lanes(out + i * width + j, n,
                    multiply_add(normalised, load_lanes(weight + j, n), load_lanes(bias + j, n)));
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
    const V weight = load_lanes(task.weight + j, n);
    V weight_sum = load_lanes(grad_weight + j, n), bias_sum = load_lanes(grad_bias + j, n);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V normalised = (load_lanes(x + r * width + j, n) - mean[r]) * rstd[r];
      const V grad = load_lanes(upstream + r * width + j, n), scaled = grad * weight;
      sum[r] += scaled;
      projection[r] = multiply_add(scaled, normalised, projection[r]);
      weight_sum = multiply_add(grad, normalised, weight_sum);
      bias_sum += grad;
    }
    store_lanes(grad_weight + j, n, weight_sum);
    store_lanes(grad_bias + j, n, bias_sum);
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
      const V normalised = (load_lanes(task.x + at + j, n) - m) * rstd;
      const V scaled = load_lanes(task.grad_out + at + j, n) * load_lanes(task.weight + j, n);
      const V before = task.add ? load_lanes(task.grad_x + at + j, n) : V{};
      const V inner = multiply_add(normalised, splat<V>(-projections[r]), scaled - sums[r]);
      store_lanes(task.grad_x + at + j, n, multiply_add(splat<V>(rstd), inner, before));
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
