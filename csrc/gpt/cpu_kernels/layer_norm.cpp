// Layer normalisation (Ba et al. 2016, arXiv:1607.06450) over the last dimension, eps 1e-5:
//   xhat = (x - mean) * rstd,  out = xhat * weight + bias
//   grad_x = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = grad_out * weight
#include "cpu/kernels/vector.h"
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

void layer_norm_backward(const float* grad_out, const float* x, const float* weight,
                         const float* mean, const float* rstd, std::int64_t width,
                         std::int64_t begin, std::int64_t end, bool add, float* grad_x,
                         float* partial) {
  float* grad_weight = partial;
  float* grad_bias = partial + width;
  std::memset(partial, 0, static_cast<std::size_t>(2 * width) * sizeof(float));
  const float inverse_width = 1.0f / static_cast<float>(width);
  for (std::int64_t i = begin; i < end; ++i) {
    const float* row = x + i * width;
    const float* upstream = grad_out + i * width;
    const float m = mean[i], r = rstd[i];
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
    float* to = grad_x + i * width;
    const float keep = add ? 1.0f : 0.0f;
    if (!add) std::memset(to, 0, static_cast<std::size_t>(width) * sizeof(float));
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) {
      const float normalised = (row[j] - m) * r;
      const float g = upstream[j] * weight[j];
      to[j] = multiply_add(r, (g - sum) - normalised * projection, keep * to[j]);
    }
  }
}

}  // namespace

void fill_layer_norm_kernels(GptKernelTable& table) {
  table.layer_norm = layer_norm;
  table.layer_norm_backward = layer_norm_backward;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
