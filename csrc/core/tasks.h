// What the kernels of every device are asked to do, after the arguments were checked: plain data.
#pragma once

#include <cstdint>

namespace flatstep {

struct CrossEntropyRows {
  const void* logits;
  std::int64_t classes;
  std::int64_t row_stride;
  const std::int64_t* targets;  // checked; ignored rows hold a negative number
  double label_smoothing;
  double grad_scale;        // upstream gradient over the divisor, for every row
  const void* grad_output;  // per row (accumulation type), or null
  void* loss;               // per row (accumulation type), or null
  void* lse;                // per row (accumulation type), or null
  void* grad;               // logits type, or null
  std::int64_t grad_row_stride;
};

// What the update of one run of elements needs; T is the type of the parameters.
template <class T>
struct UpdateScalars {
  T lr, weight_decay;
  T grad_scale[2];  // factors of the gradient, applied one after the other
  T one_minus_beta1, one_minus_beta2, beta2;
  T bias_correction1, bias_correction2_sqrt, eps;
  T step_size;     // lr / bias_correction1 (torch mode)
  T decay_factor;  // 1 - lr * weight_decay (torch mode)
  T momentum, one_minus_dampening;
  bool nesterov, first_step, zero_grad;
};

struct DropoutTask {
  std::uint64_t seed;
  std::uint64_t step;
  std::uint32_t site;
  std::uint32_t threshold;  // dropped where the random word is below
  float scale;              // of the kept elements
};

// C[m, n] = op(A)[m, k] * op(B)[k, n], or C += with accumulate; bias[n] is added once.
struct Gemm {
  bool transpose_a, transpose_b;
  std::int64_t m, n, k;
  const float* a;
  std::int64_t lda;
  const float* b;
  std::int64_t ldb;
  float* c;
  std::int64_t ldc;
  bool accumulate;
  const float* bias;  // or null
};

}  // namespace flatstep
