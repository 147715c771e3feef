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
  return std::exp((block.shift - shift) + power * kLn2High);
}

// exp(maximum) in units of exp(shift + exponent ln2).
inline double top_exponential(double maximum, double shift, double exponent) {
  return exp_nonpositive(((maximum - shift) - exponent * kLn2High) - exponent * kLn2Low);
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
inline double product(double factor, double term) { return factor == 0 ? 0.0 : factor * term; }

struct RowWeights {
  double token[CrossEntropyGroup::kRows], target[CrossEntropyGroup::kRows];
  double upstream[CrossEntropyGroup::kRows];
};

// Losses, statistics and gradient factors of all rows of the group.
inline void finish_group(const CrossEntropyRows& rows, const RowWeights& weights,
                         CrossEntropyGroup& group) {
  const double smoothing = rows.label_smoothing, z_loss = rows.z_loss, softcap = rows.softcap;
#pragma omp simd
  for (int i = 0; i < group.rows; ++i) {
    const double maximum = group.maximum[i];
    const double top = top_exponential(maximum, group.shift[i], group.exponent[i]);
    // Without one maximum, whose exponential is 1.
    const double rest = group.rest[i] / top + (std::nearbyint(group.tops[i] / top) - 1.0);
    const double sum = 1.0 + rest;
    const double log_sum = log1p_nonnegative(rest);
    const double lse = maximum + log_sum;

    const bool target_masked = group.target_logit[i] == -kInfinite<double>;
    double slope = 1.0, target_logit = group.target_logit[i];
    if (softcap > 0) {
      const double capped = cap(target_logit, softcap, slope);
      target_logit = target_masked ? target_logit : capped;
      slope = target_masked ? 0.0 : slope;
    }
    const double shifted = target_logit - maximum;

    const double at_label = (1.0 - smoothing) * weights.target[i];
    const double uniform = smoothing > 0 ? smoothing / group.unmasked[i] : 0.0;
    const double smoothed = smoothing > 0 ? group.allowed[i] * log_sum - group.logits[i] : 0.0;
    const double loss = product(at_label, log_sum - shifted) + product(uniform, smoothed) +
                        product(z_loss, lse * lse);
    group.loss[i] = product(weights.token[i], loss);
    group.lse[i] = lse;
    group.entropy[i] = log_sum - group.weighted[i] / (top * sum);

    const double weight_sum = at_label + uniform * group.allowed[i];
    const double z_slope = product(2.0 * z_loss, lse);
    const double upstream = weights.upstream[i];
    group.zero[i] = upstream == 0 || (weight_sum == 0 && z_loss == 0);
    group.factor[i] = upstream * (weight_sum + z_slope) / (sum * top);
    group.spread[i] = upstream * uniform;
    // p - 1 without cancellation: (e - 1 - rest) / sum, e being the target's exponential.
    const double less_one = (expm1_nonpositive(shifted) - rest) / sum;
    const double others = group.allowed[i] - (target_masked ? 0.0 : weights.target[i]);
    group.at_target[i] =
        upstream * slope *
        (weight_sum * less_one + product(uniform, others) + z_slope * (1.0 + less_one));
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
