// From the sums over a row's blocks to its loss and the factors of its gradient. The formulae are
// in flatstep/loss.h.
#pragma once

#include "cpu/kernels/cross_entropy_block.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// The unit of a block over that of another.
inline double unit_ratio(const CrossEntropyBlock& block, double shift, double exponent) {
  if (block.maximum == -kInfinite<double>) return 0.0;
  const double power = static_cast<double>(block.exponent) - exponent;
  if (block.shift == shift) {
    return power < -1022 ? 0.0 : float_of(static_cast<std::uint64_t>(power + 1023) << 52);
  }
  return std::exp(((block.shift - shift) + power * kLn2High) + power * kLn2Low);
}

// Adds up the blocks of row i of the group.
inline void add_blocks(const CrossEntropyBlock* blocks, std::int64_t count,
                       CrossEntropyGroup& group, int i) {
  const CrossEntropyBlock* top = blocks;
  for (std::int64_t b = 1; b < count; ++b) {
    if (blocks[b].maximum > top->maximum) top = blocks + b;
  }
  const double maximum = top->maximum, shift = top->shift;
  const auto exponent = static_cast<double>(top->exponent);
  double tops = 0, rest = 0, weighted = 0, logits = 0, allowed = 0;
  double largest = -kInfinite<double>;
  std::int64_t unmasked = 0, ties = 0;
  for (std::int64_t b = 0; b < count; ++b) {
    const CrossEntropyBlock& block = blocks[b];
    largest = std::max(largest, block.largest);
    ties += block.ties;
    if (block.maximum == -kInfinite<double>) {  // nothing but masked classes and NaN
      rest += block.total;
      continue;
    }
    const double ratio = unit_ratio(block, shift, exponent);
    const double below = block.maximum - maximum;
    tops += below == 0 ? block.total - block.rest : 0.0;
    rest += ratio * (below == 0 ? block.rest : block.total);
    weighted += ratio * (block.weighted + block.total * below);
    logits += block.logits + block.allowed * below;
    allowed += block.allowed;
    unmasked += block.unmasked;
  }
  group.largest[i] = largest;
  group.maximum[i] = maximum;
  group.shift[i] = shift;
  group.exponent[i] = exponent;
  group.tops[i] = tops;
  group.rest[i] = rest;
  group.weighted[i] = weighted;
  group.logits[i] = logits;
  group.allowed[i] = allowed;
  group.unmasked[i] = static_cast<double>(unmasked);
  group.ties[i] = static_cast<double>(ties);
}

// A factor of 0 takes its term away, whatever the term is.
template <class F>
inline F product(F factor, F term) {
  return factor == F{} ? F{} : factor * term;
}

// The nearest integer, for |x| < 2^51.
template <class F>
inline F nearest(F x) {
  return (x + 0x1.8p52) - 0x1.8p52;
}

struct RowWeights {
  double token[CrossEntropyGroup::kRows], target[CrossEntropyGroup::kRows];
  double upstream[CrossEntropyGroup::kRows];
};

// Losses, statistics and gradient factors of all rows of the group, a vector of rows at a time.
inline void finish_group(const CrossEntropyRows& rows, const RowWeights& weights,
                         CrossEntropyGroup& group) {
  using F = Vector<double>;
  const F one = splat<F>(1.0), minus_infinity = splat<F>(-kInfinite<double>);
  for (int i = 0; i < group.rows; i += static_cast<int>(kLanesOf<double>)) {
    const auto load = [i](const double* array) { return load_vector(array + i); };
    const auto store = [i](double* array, F value) { store_vector<double>(array + i, value); };
    const F maximum = load(group.maximum), exponent = load(group.exponent);
    // exp(maximum) in units of exp(shift + exponent ln2), between 1/2 and 2.
    const F top =
        scaled_exp(((maximum - load(group.shift)) - exponent * kLn2High) - exponent * kLn2Low,
                   splat<F>(-708.0), std::uint64_t{1023});
    // Without one maximum, whose exponential is 1.
    const F rest = load(group.rest) / top + (nearest(load(group.tops) / top) - 1.0);
    const F sum = rest + 1.0;
    const F log_sum = log1p_nonnegative(rest);
    const F lse = maximum + log_sum;

    F target_logit = load(group.target_logit), slope = one;
    const auto target_masked = target_logit == minus_infinity;
    if (rows.softcap > 0) {
      const F capped = cap(target_logit, rows.softcap, slope);
      target_logit = target_masked ? target_logit : capped;
      slope = target_masked ? F{} : slope;
    }
    const F shifted = target_logit - maximum;

    const F token_weight = load(weights.token), target_weight = load(weights.target);
    const F at_label = (1.0 - rows.label_smoothing) * target_weight;
    F uniform{}, smoothed{};
    if (rows.label_smoothing > 0) {
      uniform = rows.label_smoothing / load(group.unmasked);
      smoothed = load(group.allowed) * log_sum - load(group.logits);
    }
    const F z_loss = splat<F>(rows.z_loss);
    const F loss = product(at_label, log_sum - shifted) + product(uniform, smoothed) +
                   product(z_loss, lse * lse);
    store(group.loss, product(token_weight, loss));
    store(group.lse, lse);
    store(group.entropy, log_sum - load(group.weighted) / (top * sum));

    const F weight_sum = at_label + uniform * load(group.allowed);
    const F z_slope = product(2.0 * z_loss, lse);
    const F upstream = load(weights.upstream);
    store(group.weight, product(upstream, weight_sum + z_loss));
    store(group.factor, upstream * (weight_sum + z_slope) / (sum * top));
    store(group.spread, upstream * uniform);
    // p - 1 without cancellation: (e - 1 - rest) / sum, e being the target's exponential.
    F e, e_less_one;
    exp_and_less_one(shifted, e, e_less_one);
    const F less_one = (e_less_one - rest) / sum;
    const F others = load(group.allowed) - (target_masked ? F{} : target_weight);
    store(group.at_target,
          upstream * slope *
              (weight_sum * less_one + product(uniform, others) + z_slope * (less_one + 1.0)));
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
