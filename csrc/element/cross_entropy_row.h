// From the sums over a row's blocks to its loss and the factors of its gradient. The formulae are
// in flatstep/loss.h.
#pragma once

#include "element/cross_entropy_unit.h"
#include "element/softcap.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// The sums of a row over its blocks, in the unit of the block with the largest maximum. F is
// double, or Vector<double> for as many rows.
template <class F>
struct RowSums {
  F maximum, shift, exponent;  // of that block
  F tops, rest;                // sums of e over the maxima, and over the classes below them
  F weighted;                  // sum of e (y - maximum)
  F logits, allowed;           // when smoothing, sums of w (y - maximum) and w, masked left out
  F unmasked;                  // when smoothing, classes not masked
};

// Before the blocks are added: `top` is the first of those with the largest maximum.
FLATSTEP_ELEMENT RowSums<double> empty_row(const CrossEntropyBlock& top) {
  RowSums<double> row{};
  row.maximum = top.maximum;
  row.shift = top.shift;
  row.exponent = static_cast<double>(top.exponent);
  return row;
}

FLATSTEP_ELEMENT void add_block(const CrossEntropyBlock& block, RowSums<double>& row) {
  if (block.maximum == -kInfinite<double>) {  // nothing but masked classes and NaN
    row.rest += block.total;
    return;
  }
  const double ratio = unit_ratio(block, row.shift, row.exponent);
  const double below = block.maximum - row.maximum;
  row.tops += below == 0 ? block.total - block.rest : 0.0;
  row.rest += ratio * (below == 0 ? block.rest : block.total);
  row.weighted += ratio * (block.weighted + block.total * below);
  row.logits += block.logits + block.allowed * below;
  row.allowed += block.allowed;
  row.unmasked += static_cast<double>(block.unmasked);
}

// Whether the target is the first of the largest logits. `ties` are those of all blocks.
FLATSTEP_ELEMENT bool is_correct(double target_logit, double largest, double ties, double rest) {
  return target_logit == largest && ties == 0 && rest == rest;
}

// What else a row's loss is made of; without weights they are 1.
template <class F>
struct RowTarget {
  F logit;
  F token_weight, class_weight;  // of the row, and of its target
  F upstream;                    // gradient of the row's loss, times its weight
};

struct RowOptions {
  double label_smoothing, z_loss;
  Softcap softcap;
};

// Gradient of class j = (e_j factor - spread w_j) slope_j, or 0 where the row has no weight.
template <class F>
struct RowResult {
  F loss, lse, entropy;
  F weight, factor, spread, at_target;
};

// A factor of 0 takes its term away, whatever the term is.
template <class F>
FLATSTEP_ELEMENT F product(F factor, F term) {
  return factor == F{} ? F{} : factor * term;
}

// The nearest integer, for |x| < 2^51.
template <class F>
FLATSTEP_ELEMENT F nearest(F x) {
  return (x + 0x1.8p52) - 0x1.8p52;
}

// What a row's loss and gradient share: the exponential of the maximum in units of
// exp(shift + exponent ln2), between 1/2 and 2, and the row's sum in units of it.
template <class F>
struct RowShares {
  F top;
  F rest;  // without one maximum, whose exponential is 1
};

template <class F>
FLATSTEP_ELEMENT RowShares<F> shares_of(const RowSums<F>& row) {
  const F distance = ((row.maximum - row.shift) - row.exponent * kLn2High) - row.exponent * kLn2Low;
  const F top = scaled_exp(distance, splat<F>(-708.0), std::uint64_t{1023});
  return {top, row.rest / top + (nearest(row.tops / top) - 1.0)};
}

// The factors of a row's gradient.
template <class F>
struct RowFactors {
  F weight, factor, spread;
  F uniform, weight_sum, z_slope;
};

// `total` is the row's sum of exponentials; `lse` counts only with a z-loss.
template <class F>
FLATSTEP_ELEMENT RowFactors<F> factors_of_row(const RowSums<F>& row, F total,
                                              const RowTarget<F>& target, F lse,
                                              const RowOptions& options) {
  RowFactors<F> result;
  const F at_label = (1.0 - options.label_smoothing) * target.class_weight;
  result.uniform = F{};
  if (options.label_smoothing > 0) result.uniform = options.label_smoothing / row.unmasked;
  const F z_loss = splat<F>(options.z_loss);
  result.weight_sum = at_label + result.uniform * row.allowed;
  result.z_slope = product(2.0 * z_loss, lse);
  result.weight = product(target.upstream, result.weight_sum + z_loss);
  result.factor = target.upstream * (result.weight_sum + result.z_slope) / total;
  result.spread = target.upstream * result.uniform;
  return result;
}

template <class F>
FLATSTEP_ELEMENT RowResult<F> finish_row(const RowSums<F>& row, const RowTarget<F>& target,
                                         const RowOptions& options) {
  RowResult<F> result;
  const F one = splat<F>(1.0), minus_infinity = splat<F>(-kInfinite<double>);
  const RowShares<F> shares = shares_of(row);
  const F top = shares.top, rest = shares.rest, sum = rest + 1.0;
  const F log_sum = log1p_nonnegative(rest);
  const F lse = row.maximum + log_sum;

  F target_logit = target.logit, slope = one;
  const auto target_masked = target_logit == minus_infinity;
  if (options.softcap.cap > 0) {
    const F capped = cap(target_logit, options.softcap, slope);
    target_logit = target_masked ? target_logit : capped;
    slope = target_masked ? F{} : slope;
  }
  const F shifted = target_logit - row.maximum;

  const RowFactors<F> factors = factors_of_row(row, sum * top, target, lse, options);
  const F at_label = (1.0 - options.label_smoothing) * target.class_weight;
  F smoothed{};
  if (options.label_smoothing > 0) smoothed = row.allowed * log_sum - row.logits;
  const F z_loss = splat<F>(options.z_loss);
  const F loss = product(at_label, log_sum - shifted) + product(factors.uniform, smoothed) +
                 product(z_loss, lse * lse);
  result.loss = product(target.token_weight, loss);
  result.lse = lse;
  result.entropy = log_sum - row.weighted / (top * sum);

  result.weight = factors.weight;
  result.factor = factors.factor;
  result.spread = factors.spread;
  // p - 1 without cancellation: (e - 1 - rest) / sum, e being the target's exponential.
  F e, e_less_one;
  exp_and_less_one(shifted, e, e_less_one);
  const F less_one = (e_less_one - rest) / sum;
  const F others = row.allowed - (target_masked ? F{} : target.class_weight);
  result.at_target = target.upstream * slope *
                     (factors.weight_sum * less_one + product(factors.uniform, others) +
                      factors.z_slope * (less_one + 1.0));
  return result;
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
