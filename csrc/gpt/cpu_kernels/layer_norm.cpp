// Layer normalisation (Ba et al. 2016, arXiv:1607.06450) over the last dimension, eps 1e-5:
//   xhat = (x - mean) * rstd,  out = xhat * weight + bias
//   grad_x = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = grad_out * weight
#include <algorithm>
#include <cstring>

#include "cpu/kernels/vector.h"
#include "gpt/cpu_kernels/add_dropout.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr float kEpsilon = 1e-5f;

void layer_norm(const float* x, const float* weight, const float* bias, std::int64_t width,
                std::int64_t begin, std::int64_t end, float* out, float* mean, float* rstd) {
  const float inverse_width = 1.0f / static_cast<float>(width);
  for (std::int64_t i = begin; i < end; ++i) {
    const float* row = x + i * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < width; ++j) sum += row[j];
    const float m = sum * inverse_width;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (std::int64_t j = 0; j < width; ++j) squares += (row[j] - m) * (row[j] - m);
    const float r = 1.0f / std::sqrt(squares * inverse_width + kEpsilon);
    float* to = out + i * width;
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) {
      to[j] = multiply_add((row[j] - m) * r, weight[j], bias[j]);
    }
    mean[i] = m;
    rstd[i] = r;
  }
}

// One row of grad_x; the gradients of weight and bias are added to.
void backward_row(const LayerNormBackward& task, std::int64_t i, float* __restrict grad_weight,
                  float* __restrict grad_bias) {
  const std::int64_t width = task.width;
  const float inverse_width = 1.0f / static_cast<float>(width);
  const float* row = task.x + i * width;
  const float* upstream = task.grad_out + i * width;
  const float* weight = task.weight;
  const float m = task.mean[i], r = task.rstd[i];
  float sum = 0, projection = 0;
#pragma omp simd reduction(+ : sum, projection)
  for (std::int64_t j = 0; j < width; ++j) {
    const float normalised = (row[j] - m) * r;
    const float g = upstream[j] * weight[j];
    sum += g;
    projection += g * normalised;
    grad_weight[j] += upstream[j] * normalised;
    grad_bias[j] += upstream[j];
  }
  sum *= inverse_width;
  projection *= inverse_width;
  float* to = task.grad_x + i * width;
  const float keep = task.add ? 1.0f : 0.0f;
  if (!task.add) std::memset(to, 0, static_cast<std::size_t>(width) * sizeof(float));
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) {
    const float normalised = (row[j] - m) * r;
    const float g = upstream[j] * weight[j];
    to[j] = multiply_add(r, (g - sum) - normalised * projection, keep * to[j]);
  }
}

void layer_norm_backward(const LayerNormBackward& task, std::int64_t begin, std::int64_t end,
                         float* partial) {
  const std::int64_t width = task.width;
  std::memset(partial, 0, static_cast<std::size_t>(3 * width) * sizeof(float));
  float* branch_sum = partial + 2 * width;
  const float* branch = task.branch != nullptr ? task.branch : task.grad_x;
  // Short rows together: a mask of few elements takes nearly as long as one of 128.
  const std::int64_t group = std::max<std::int64_t>(1, 128 / width);
  for (std::int64_t first = begin; first < end; first += group) {
    const std::int64_t stop = std::min(end, first + group), at = first * width;
    for (std::int64_t i = first; i < stop; ++i) backward_row(task, i, partial, partial + width);
    if (task.branch != nullptr) {
      add_dropout(task.dropout, task.grad_x + at, nullptr, at, (stop - first) * width,
                  task.branch + at);
    }
    for (std::int64_t i = first; i < stop; ++i) {
      const float* grad = branch + i * width;
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) branch_sum[j] += grad[j];
    }
  }
}

}  // namespace

void fill_layer_norm_kernels(GptKernelTable& table) {
  table.layer_norm = layer_norm;
  table.layer_norm_backward = layer_norm_backward;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
