// From the sums of a row to its loss and gradient factors, by one thread; and how a row's results
// and those of ignored rows are stored.
#pragma once

#include "cuda/cross_entropy.h"
#include "cuda/cross_entropy_slice.h"

namespace flatstep::cuda {
namespace {

// A row that is not ignored.
struct Row {
  std::int64_t index, target;
  float target_logit;
};

__device__ __forceinline__ const void* logits_of(const CrossEntropyRows& rows, std::int64_t row) {
  return static_cast<const char*>(rows.logits) + row * rows.row_stride * size_of(rows.dtype);
}
__device__ __forceinline__ void* gradient_of(const CrossEntropyRows& rows, std::int64_t row) {
  return static_cast<char*>(rows.grad) + row * rows.grad_row_stride * size_of(rows.grad_dtype);
}

__device__ __forceinline__ void store_rows(const CrossEntropyRows& rows, std::int64_t row,
                                           double loss, double lse, double entropy) {
  const auto store = [row](void* array, double value) {
    if (array != nullptr) static_cast<float*>(array)[row] = static_cast<float>(value);
  };
  store(rows.loss, loss);
  store(rows.lse, lse);
  store(rows.entropy, entropy);
}

// Two stretches of a row as one.
[[maybe_unused]] __device__ __noinline__ CrossEntropyBlock merged(const CrossEntropyBlock& a,
                                                                  const CrossEntropyBlock& b) {
  RowSums<double> row = empty_row(b.maximum > a.maximum ? b : a);
  add_block(a, row);
  add_block(b, row);
  CrossEntropyBlock block;
  block.maximum = row.maximum;
  block.largest = b.largest > a.largest ? b.largest : a.largest;
  block.shift = row.shift;
  block.exponent = static_cast<std::int64_t>(row.exponent);
  block.rest = row.rest;
  block.total = row.rest + row.tops;
  block.weighted = row.weighted;
  block.logits = row.logits;
  block.allowed = row.allowed;
  block.unmasked = static_cast<std::int64_t>(row.unmasked);
  block.ties = 0;
  return block;
}

// What every thread needs to know of a finished row.
struct FinishedRow {
  double shift, exponent;  // of the row's unit
  double factor, spread, loss;
  float at_target, maximum;
  std::int32_t weightless, invalid;  // the gradient is 0, or NaN, throughout
  std::int32_t several;              // more than one logit is the largest, the target's among them
  std::int32_t correct;              // unless `several`
};

// `top` is the exponential of the largest logit in the row's unit. Not inlined: its many registers
// would be taken from those that hold the row.
__device__ __noinline__ FinishedRow finish(const CrossEntropyRows& rows, const LossTotals& totals,
                                           const Row& row, const CrossEntropyBlock& block,
                                           float top, bool store) {
  RowSums<double> sums = empty_row(block);
  add_block(block, sums);
  if (rows.label_smoothing == 0) {
    sums.allowed = sums.unmasked = rows.classes;  // not looked at but for their being finite
  }
  const auto element = [](const void* array, std::int64_t index) {
    return array != nullptr ? static_cast<double>(static_cast<const float*>(array)[index]) : 1.0;
  };
  RowTarget<double> target;
  target.logit = static_cast<double>(row.target_logit);
  target.token_weight = element(rows.token_weight, row.index);
  target.class_weight = element(rows.class_weight, row.target);
  target.upstream = rows.grad_output * totals.factor * element(rows.grad_output_rows, row.index) *
                    target.token_weight;
  const RowResult<double> result =
      finish_row<double>(sums, target, {rows.label_smoothing, rows.z_loss, rows.softcap});
  if (store) store_rows(rows, row.index, result.loss, result.lse, result.entropy);

  const bool largest = target.logit == block.largest;
  FinishedRow finished;
  finished.shift = sums.shift;
  finished.exponent = sums.exponent;
  finished.factor = result.factor;
  finished.spread = result.spread;
  finished.loss = result.loss;
  finished.at_target = static_cast<float>(result.at_target);
  finished.maximum = static_cast<float>(block.largest);
  finished.weightless = result.weight == 0 ? 1 : 0;
  finished.invalid = result.factor == result.factor ? 0 : 1;
  finished.several = largest && sums.tops > 1.5 * top ? 1 : 0;
  finished.correct = is_correct(target.logit, block.largest, 0.0, sums.rest) ? 1 : 0;
  return finished;
}

// For a stretch whose unit is so many times the row's.
__device__ __forceinline__ GradientFactors factors_of(const FinishedRow& row, double ratio) {
  return {static_cast<float>(row.factor * ratio), static_cast<float>(row.spread),
          row.weightless ? 0.0f : kInfinite<float> - kInfinite<float>,
          row.weightless != 0 || row.invalid != 0};
}

}  // namespace
}  // namespace flatstep::cuda
