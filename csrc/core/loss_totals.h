// From the counts and sums over the targets to the reduction's factor and the result; for the host
// and the device.
#pragma once

#include <limits>

#include "core/tasks.h"
#include "element/qualifier.h"

namespace flatstep {

struct LossReduction {
  bool mean;
  double divisor;  // 0 for none
  bool nan_when_empty;
};

static inline LossReduction reduction_of(const CrossEntropyOptions& options) {
  return {options.reduction == Reduction::mean, options.divisor.value_or(0.0),
          options.on_empty == OnEmpty::nan};
}

// From n_valid and weight.
[[maybe_unused]] static FLATSTEP_ELEMENT void set_factor(const LossReduction& reduction,
                                                         LossTotals& totals) {
  totals.factor = 1.0;
  totals.empty = 0;
  if (!reduction.mean) return;
  if (reduction.divisor > 0) {
    totals.factor = 1.0 / reduction.divisor;
    totals.empty = totals.n_valid == 0 ? 1 : 0;
  } else if (totals.weight < 0) {
    totals.fault = LossFault::weight_sum;
    totals.value = totals.weight;
  } else {
    totals.empty = totals.weight == 0 ? 1 : 0;
    totals.factor = totals.weight == 0 ? 0.0 : 1.0 / totals.weight;
  }
}

[[maybe_unused]] static FLATSTEP_ELEMENT CrossEntropyResult
result_of(const LossReduction& reduction, const LossTotals& totals) {
  CrossEntropyResult result{totals.loss * totals.factor, totals.n_valid, totals.correct,
                            totals.weight};
  if (totals.empty != 0) {
    result.loss = reduction.nan_when_empty ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  }
  return result;
}

}  // namespace flatstep
