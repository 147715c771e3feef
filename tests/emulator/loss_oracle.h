// The loss in long double, straight from the formulas in flatstep/loss.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace oracle {

struct Options {
  double label_smoothing = 0, z_loss = 0, softcap = 0;
  const float* class_weight = nullptr;
};

struct Row {
  double loss, lse, entropy;
  double pulled;                 // the largest term that goes with a probability
  bool correct;                  // the target is the first of the largest logits
  std::vector<double> gradient;  // by the logits, for an upstream gradient of 1
};

inline Row row(const std::vector<float>& x, std::int64_t target, double token_weight,
               const Options& o) {
  using Real = long double;
  const std::size_t n = x.size();
  const Real infinity = std::numeric_limits<Real>::infinity();
  std::vector<Real> y(n), slope(n, 1);
  Real top = -infinity;
  for (std::size_t j = 0; j < n; ++j) {
    y[j] = x[j];
    if (o.softcap > 0 && y[j] != -infinity) {
      const Real tanh = std::tanh(Real(x[j]) / Real(o.softcap));
      y[j] = Real(o.softcap) * tanh;
      slope[j] = 1 - tanh * tanh;
    }
    top = std::max(top, y[j]);
  }
  Real rest = 0, allowed = 0, count = 0;  // without one largest logit, whose exponential is 1
  bool skipped = false;
  for (std::size_t j = 0; j < n; ++j) {
    if (y[j] == top && !skipped) {
      skipped = true;
    } else {
      rest += std::exp(y[j] - top);
    }
    if (y[j] == -infinity) continue;
    count += 1;
    allowed += o.class_weight ? Real(o.class_weight[j]) : Real(1);
  }
  // Apart from the largest logit, which may be so large that log(sum) would lose its digits.
  const Real log_sum = std::log1p(rest), lse = top + log_sum;
  const auto distance = [&](std::size_t j) { return log_sum - (y[j] - top); };
  const auto weight = [&](std::size_t j) {
    return o.class_weight ? Real(o.class_weight[j]) : Real(1);
  };
  const auto t = static_cast<std::size_t>(target);
  const Real at_label = (1 - Real(o.label_smoothing)) * weight(t);
  const Real uniform = Real(o.label_smoothing) / count;
  Real loss = at_label == 0 ? 0 : at_label * distance(t);
  Real entropy = 0;
  for (std::size_t j = 0; j < n; ++j) {
    if (y[j] == -infinity) continue;
    if (o.label_smoothing > 0) loss += uniform * weight(j) * distance(j);
    entropy += std::exp(-distance(j)) * distance(j);
  }
  loss += Real(o.z_loss) * lse * lse;
  const Real pull = at_label + uniform * allowed + 2 * Real(o.z_loss) * lse;
  Row result;
  result.loss = static_cast<double>(loss * Real(token_weight));
  result.lse = static_cast<double>(lse);
  result.entropy = static_cast<double>(entropy);
  result.pulled = 0;
  result.correct = true;
  for (std::size_t j = 0; j < n; ++j) {
    if (x[j] > x[t] || (x[j] == x[t] && j < t)) result.correct = false;
    const Real p = std::exp(-distance(j));
    const Real size = (at_label + uniform * allowed + 2 * Real(o.z_loss) * std::fabs(lse)) * p;
    result.pulled = std::max(result.pulled, static_cast<double>(size));
    Real gradient = 0;
    if (y[j] != -infinity) {
      gradient = pull * p - (o.label_smoothing > 0 ? uniform * weight(j) : 0);
      if (j == t) gradient -= at_label;
      gradient *= slope[j] * Real(token_weight);
    }
    result.gradient.push_back(static_cast<double>(gradient));
  }
  return result;
}

}  // namespace oracle
