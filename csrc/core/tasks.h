// What the kernels of every device are asked to do, after the arguments were checked: plain data.
#pragma once

#include <cstdint>

#include "element/qualifier.h"
#include "flatstep/loss.h"
#include "flatstep/types.h"

namespace flatstep {

// What a loss keeps in the memory of its device from the first look at the targets to the result.
struct LossTotals {
  std::int64_t n_valid;
  double weight;         // of the valid rows
  double factor;         // what the reduction multiplies the sum of the rows' losses with
  double loss;           // the sum over the rows so far
  std::int64_t correct;  // rows so far whose target is the first of the largest logits
  std::int32_t empty;    // on_empty rules
  LossFault fault;       // with it, no row is computed
  std::int64_t where, target;
  double value;
};

// "Accumulation type" below: f64 for f64 logits, f32 for all others.
struct CrossEntropyRows {
  DType dtype;  // of the logits
  const void* logits;
  std::int64_t rows, classes;
  std::int64_t row_stride;
  IndexArray targets;  // checked
  std::int64_t ignore_index;
  const void* class_weight;  // [classes] (accumulation type), or null
  const void* token_weight;  // per row (accumulation type), or null
  double label_smoothing, z_loss;
  double softcap;                // 0 for none
  double grad_output;            // upstream gradient for every row, before the reduction's factor
  const void* grad_output_rows;  // per row (accumulation type), or null
  void* loss;                    // per row (accumulation type), or null
  void* lse;                     // per row (accumulation type), or null
  void* entropy;                 // per row (accumulation type), or null
  void* grad;                    // or null
  DType grad_dtype;  // that of the logits, or 16 bits for f32 where half_products() holds
  std::int64_t grad_row_stride;
  bool zero_at_fault;  // the gradient, where it would else be left as it is
};

// The functions here have internal linkage: the linker would otherwise keep one instruction set's
// for everybody.
static FLATSTEP_ELEMENT std::int64_t index_at(const IndexArray& array, std::int64_t i) {
  return array.dtype == DType::i32 ? static_cast<const std::int32_t*>(array.data)[i]
                                   : static_cast<const std::int64_t*>(array.data)[i];
}

// The class of a row, or -1 where it is ignored.
static FLATSTEP_ELEMENT std::int64_t target_of(const CrossEntropyRows& rows, std::int64_t row) {
  const std::int64_t value = index_at(rows.targets, row);
  return value == rows.ignore_index ? -1 : value;
}

// Sums over one block of a row's classes. With u = exp(shift + exponent ln2), the block's unit,
// e_j = exp(y_j) / u and y_j the logit after softcap:
struct CrossEntropyBlock {
  static constexpr std::int64_t kClasses = 2048;

  double largest;  // logit before softcap
  double maximum;  // of y; -inf where all classes are masked
  double shift;
  std::int64_t exponent;
  double total, rest;      // sums of e over all classes, and over those below the maximum; the
                           // latter counts only in a row's blocks with the largest maximum
  double weighted;         // sum of e (y - maximum)
  double logits, allowed;  // when smoothing, sums of w (y - maximum) and w, masked left out
  std::int64_t unmasked;   // when smoothing, classes not masked
  std::int64_t ties;       // classes before the target with the target's logit, if that is maximal
};

// Rows that are computed together, one array element each, so that what follows the sums is
// vectorised over rows.
struct CrossEntropyGroup {
  static constexpr int kRows = 64;
  // Of logits: they stay in the second cache. What fits the nearest one alone takes up to a fifth
  // longer, since each group has a part that does not grow with its rows.
  static constexpr std::int64_t kElements = 32768;

  int rows = 0;
  std::int64_t row[kRows], target[kRows];
  double target_logit[kRows];
  // From sum_blocks and add_blocks; the largest block's unit is the row's.
  double largest[kRows], maximum[kRows], shift[kRows], exponent[kRows];
  double tops[kRows], rest[kRows], weighted[kRows], logits[kRows], allowed[kRows], unmasked[kRows];
  double ties[kRows];
  // From finish: gradient of class j = (e_j factor - spread w_j) slope_j, or 0 where the row has no
  // weight.
  double loss[kRows], lse[kRows], entropy[kRows];
  double weight[kRows], factor[kRows], spread[kRows], at_target[kRows];
};

// Rows of a group: as many as fit kElements.
static inline std::int64_t group_rows_of(std::int64_t classes) {
  const std::int64_t rows = CrossEntropyGroup::kElements / classes;
  return rows < 1 ? 1 : rows > CrossEntropyGroup::kRows ? CrossEntropyGroup::kRows : rows;
}

// Memory for the rows of a group. `blocks` holds the blocks of each row, one row after the other;
// the arrays hold one element a class, of the accumulation type.
struct CrossEntropyScratch {
  CrossEntropyBlock* blocks;
  void* exponentials;         // e, where the gradient's own buffer has another type
  void* slopes;               // dy / dx, with softcap and a gradient
  const double* weight_sums;  // of each block's class weights; with weights and smoothing
};

struct CrossEntropySums {
  double loss = 0;
  std::int64_t correct = 0;  // rows whose target is the first of the largest logits
};

// A number that many are divided by: 1 / value = reciprocal + rest, far beyond T's precision.
template <class T>
struct Divisor {
  T value, reciprocal, rest;
};

// Tensors that are updated alike: what the scalars of a step are made of, whatever the step.
struct UpdateGroup {
  double lr_scale, weight_decay;
  double beta1, beta2, eps;
  double momentum, dampening;
  bool nesterov, maximize;
};

// What the update of one run of elements needs; T is the type of the parameters.
template <class T>
struct UpdateScalars {
  T lr, weight_decay;
  // Two factors, applied one after the other, so that neither is subnormal: their product is
  // clip_scale / grad_scale, negative with maximize.
  T grad_scale[2];
  T one_minus_beta1, one_minus_beta2, beta2;
  T lerp_weight;  // of torch mode: 1 - beta1 from m on, or -beta1 from the gradient on
  Divisor<T> bias_correction1, bias_correction2_sqrt;
  T eps;
  T correction;     // bias_correction2_sqrt / bias_correction1 (8-bit state)
  T eps_corrected;  // eps * bias_correction2_sqrt (8-bit state)
  T step_size;      // lr / bias_correction1 (torch mode)
  T decay_factor;   // 1 - lr * weight_decay (torch mode)
  T momentum, one_minus_dampening;
  bool nesterov, first_step, lerp_from_gradient;
};

// A run of elements and their state; state3 is the largest state2 so far, or null.
template <class T>
struct UpdateArrays {
  T* param;
  const T* grad;
  T *state1, *state2, *state3;
};

// How the arithmetic of an update is rounded. PyTorch's kernels treat what is left behind the last
// whole vector of 8 floats (4 doubles) differently.
enum class Rounding { native, torch, torch_tail };

// Whole blocks of 128 elements with 8-bit moments (StateFormat::block8) and 16 random bits for
// each.
struct LowBitArrays {
  float* param;
  const float* grad;
  const std::uint16_t* random;
  std::uint8_t* codes1;    // of the first moment, or null
  std::uint16_t* scales1;  // one a block
  std::uint8_t* codes2;
  std::uint16_t* scales2;
  // Where the numbers of param and grad come from, and their bytes: what is read ahead.
  const void* param_memory;
  const void* grad_memory;
  std::int64_t param_bytes, grad_bytes;
};

struct DropoutTask {
  std::uint64_t seed;
  std::uint64_t step;
  std::uint32_t site;
  std::uint32_t threshold;  // dropped where the random word is below
  float scale;              // of the kept elements
};

// C[m, n] = alpha op(A)[m, k] op(B)[k, n], or C += with accumulate; bias[n] is added once.
struct Gemm {
  bool transpose_a, transpose_b;
  std::int64_t m, n, k;
  const void* a;
  std::int64_t lda;
  const void* b;
  std::int64_t ldb;
  void* c;
  std::int64_t ldc;
  bool accumulate;
  const float* bias;          // or null
  DType type_a = DType::f32;  // f32, bf16 or f16
  DType type_b = DType::f32;
  DType type_c = DType::f32;  // or, where half_products() holds, 16 bits
  float alpha = 1.0f;         // where half_products() holds, a power of two
};

// What follows from the gradient of logits = hidden weight^T, with types and alpha as in Gemm:
//   grad_hidden = alpha grad weight,
//   grad_weight = alpha grad^T hidden, or += with accumulate.
// Either result may be null.
struct LinearGradients {
  ConstMatrix grad;    // [rows, classes]
  ConstMatrix hidden;  // [rows, width]
  ConstMatrix weight;  // [classes, width]
  void* grad_hidden;   // [rows, width]
  DType grad_hidden_dtype;
  std::int64_t grad_hidden_row_stride;
  float* grad_weight;  // [classes, width], dense
  bool accumulate;
  float alpha;
  bool accumulate_hidden = false;  // the same for grad_hidden
};

}  // namespace flatstep
