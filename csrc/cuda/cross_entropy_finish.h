// From the sums of a row to the factors of its gradient, by one thread.
#pragma once

#include "cuda/cross_entropy.h"
#include "cuda/cross_entropy_sums.h"

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

// Two stretches of a row as one, in the place of the first.
[[maybe_unused]] __device__ __noinline__ void merge(RowRecord& a, const RowRecord& b) {
  const CrossEntropyBlock first = block_of(a), second = block_of(b);
  const bool second_is_larger = b.largest > a.largest;
  RowSums<double> row = empty_row(second_is_larger ? second : first);
  add_block(first, row);
  add_block(second, row);
  a.tops = row.tops;
  a.rest = row.rest;
  a.weighted = row.weighted;
  a.logits = row.logits;
  a.allowed = row.allowed;
  a.largest = second_is_larger ? b.largest : a.largest;
  a.unmasked = static_cast<std::int32_t>(row.unmasked);
}

// What every thread needs to know of a row before it can write its gradient.
struct RowScale {
  double factor, spread;
  float maximum;
  std::int32_t weightless, invalid;  // the gradient is 0, or NaN, throughout
  std::int32_t several;              // more than one logit is the largest, the target's among them
  std::int32_t correct;              // unless `several`
};

// The unit of a record's exponentials, and the largest logit, after softcap.
struct RowUnit {
  double maximum, shift, exponent;
};

__device__ __forceinline__ RowUnit unit_of(const RowRecord& record) {
  const SliceUnit unit(record.largest);
  return {static_cast<double>(record.largest), static_cast<double>(unit.shift),
          static_cast<double>(unit.exponent)};
}
__device__ __forceinline__ Softcap softcap_of(const CrossEntropyRows& rows) {
  return Softcap(rows.softcap, rows.dtype);
}

// Under softcap.
__device__ __forceinline__ RowUnit capped_unit_of(const RowRecord& record, const Softcap& softcap) {
  const auto largest = static_cast<double>(record.largest);
  double slope;
  const double top = cap(largest, softcap, slope);
  const double maximum = largest == -kInfinite<double> ? largest : top;
  return {maximum, maximum, 0.0};
}

// A row's sums for element/.
__device__ __forceinline__ RowSums<double> row_sums(const RowRecord& record, const RowUnit& unit,
                                                    const CrossEntropyRows& rows) {
  const bool smooth = rows.label_smoothing > 0;
  // Where they were not counted, they are not looked at but for their being finite.
  const auto classes = static_cast<double>(rows.classes);
  return {unit.maximum,
          unit.shift,
          unit.exponent,
          record.tops,
          record.rest,
          record.weighted,
          record.logits,
          smooth ? record.allowed : classes,
          smooth ? static_cast<double>(record.unmasked) : classes};
}

// `factor` is that of the reduction.
__device__ __forceinline__ RowTarget<double> target_in(const CrossEntropyRows& rows, double factor,
                                                       const Row& row) {
  const auto element = [](const void* array, std::int64_t index) {
    return array != nullptr ? static_cast<double>(static_cast<const float*>(array)[index]) : 1.0;
  };
  RowTarget<double> target;
  target.logit = static_cast<double>(row.target_logit);
  target.token_weight = element(rows.token_weight, row.index);
  target.class_weight = element(rows.class_weight, row.target);
  target.upstream =
      rows.grad_output * factor * element(rows.grad_output_rows, row.index) * target.token_weight;
  return target;
}

// The log-sum-exp, for a z-loss.
[[maybe_unused]] __device__ __noinline__ double lse_of(double maximum, double shift,
                                                       double exponent, double tops, double rest) {
  RowSums<double> sums{};
  sums.maximum = maximum;
  sums.shift = shift;
  sums.exponent = exponent;
  sums.tops = tops;
  sums.rest = rest;
  return maximum + log1p_nonnegative(shares_of(sums).rest);
}

// By one thread, for which the others wait: what takes long is left to the kernel that ends the
// rows, a thread each. `top` is the exponential of the largest logit.
__device__ __forceinline__ RowScale scale_of(const CrossEntropyRows& rows,
                                             const RowTarget<double>& target,
                                             const RowRecord& record, double top,
                                             const RowSums<double>& sums) {
  const RowOptions options{rows.label_smoothing, rows.z_loss, softcap_of(rows)};
  const double lse =
      rows.z_loss > 0 ? lse_of(sums.maximum, sums.shift, sums.exponent, sums.tops, sums.rest) : 0.0;
  // A row with nothing but masked classes has no gradient.
  const double total = record.largest == -kInfinite<float> ? kInfinite<double> - kInfinite<double>
                                                           : sums.rest + sums.tops;
  const RowFactors<double> factors = factors_of_row(sums, total, target, lse, options);
  const bool largest = target.logit == static_cast<double>(record.largest);
  RowScale scale;
  scale.factor = factors.factor;
  scale.spread = factors.spread;
  scale.maximum = record.largest;
  scale.weightless = factors.weight == 0 ? 1 : 0;
  scale.invalid = factors.factor == factors.factor ? 0 : 1;
  scale.several = largest && sums.tops > 1.5 * top ? 1 : 0;
  scale.correct =
      is_correct(target.logit, static_cast<double>(record.largest), 0.0, sums.rest) ? 1 : 0;
  return scale;
}
__device__ __forceinline__ RowScale scale_of(const CrossEntropyRows& rows,
                                             const RowTarget<double>& target,
                                             const RowRecord& record) {
  return scale_of(rows, target, record, static_cast<double>(top_of(record.largest)),
                  row_sums(record, unit_of(record), rows));
}

__device__ __forceinline__ void store_record(RowRecord record, const Row& row, bool correct,
                                             RowRecord* records) {
  record.target = row.target_logit;
  record.correct = correct ? 1 : 0;
  records[row.index] = record;
}

__device__ __forceinline__ GradientFactors factors_of(const RowScale& row) {
  return {static_cast<float>(row.factor), static_cast<float>(row.spread),
          row.weightless ? 0.0f : kInfinite<float> - kInfinite<float>,
          row.weightless != 0 || row.invalid != 0};
}

}  // namespace
}  // namespace flatstep::cuda
