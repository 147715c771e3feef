// GELU in the tanh form of GPT-2 (Hendrycks & Gimpel 2016, arXiv:1606.08415):
//   gelu(x) = x/2 (1 + tanh u) = x s,  u = sqrt(2/pi) (x + 0.044715 x^3),  s = 1 / (1 + exp(-2u))
#include "cpu/kernels/vector.h"
#include "element/exponential.h"
#include "gpt/cpu_kernels/add_dropout.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr float kTwiceRoot = 1.59576912f;  // 2 sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

// 1 / (1 + exp(-2u)); the exponential takes -|2u|, so it neither overflows nor loses digits.
inline float sigmoid(float twice_u) {
  const float magnitude = twice_u < 0 ? twice_u : -twice_u;
  const float e = exp_nonpositive(magnitude);
  const float numerator = twice_u < 0 ? e : 1.0f;
  return numerator / (1.0f + e);
}

void gelu(const float* __restrict x, float* __restrict out, std::int64_t size) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const float v = x[i];
    out[i] = v * sigmoid(kTwiceRoot * v * multiply_add(kCubic * v, v, 1.0f));
  }
}

void gelu_and_slope(float* __restrict x, float* __restrict out, std::int64_t size) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const float v = x[i];
    const float s = sigmoid(kTwiceRoot * v * multiply_add(kCubic * v, v, 1.0f));
    const float inner = kTwiceRoot * multiply_add(3.0f * kCubic * v, v, 1.0f);  // d(2u)/dx
    const float product = v * s;
    out[i] = product;
    x[i] = multiply_add(product * (1.0f - s), inner, s);
  }
}

void multiply(const float* __restrict factors, std::int64_t size, float* __restrict x) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) x[i] *= factors[i];
}

void sum_partials(const float* partials, std::int64_t count, std::int64_t stride,
                  std::int64_t columns, float* out, bool accumulate) {
  constexpr std::int64_t kStretch = 64;
  for (std::int64_t begin = 0; begin < columns; begin += kStretch) {
    const std::int64_t size = std::min(kStretch, columns - begin);
    double sum[kStretch];
    for (std::int64_t j = 0; j < size; ++j) sum[j] = accumulate ? out[begin + j] : 0.0;
    for (std::int64_t c = 0; c < count; ++c) {
      const float* from = partials + c * stride + begin;
#pragma omp simd
      for (std::int64_t j = 0; j < size; ++j) sum[j] += from[j];
    }
    for (std::int64_t j = 0; j < size; ++j) out[begin + j] = static_cast<float>(sum[j]);
  }
}

void add(const float* from, std::int64_t size, float* to) {
#pragma omp simd
  for (std::int64_t j = 0; j < size; ++j) to[j] += from[j];
}

}  // namespace

void fill_activation_kernels(GptKernelTable& table) {
  table.gelu = gelu;
  table.gelu_and_slope = gelu_and_slope;
  table.multiply = multiply;
  table.add_dropout = add_dropout;
  table.sum_partials = sum_partials;
  table.add = add;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
