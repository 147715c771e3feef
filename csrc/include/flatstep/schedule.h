// Learning-rate schedules: pure functions of the number of optimizer steps already done.
#pragma once

#include <cstdint>

#include "flatstep/export.h"

namespace flatstep {

enum class ScheduleKind {
  constant,
  warmup_constant,
  warmup_linear,
  warmup_cosine,
  inverse_sqrt,
  noam
};

// With k = step, t = k + 1, W = warmup, T = total, b = base_lr:
//   warm-up (k < W)   b * t / W             the first step already learns
//   constant          b
//   warmup_constant   b
//   warmup_linear     min_lr + (b - min_lr) * (1 - r)
//   warmup_cosine     min_lr + (b - min_lr) * (1 + cos(pi * r)) / 2     (Loshchilov & Hutter 2017)
//                     with r = (t - W) / (T - W), clamped to [0, 1]: step T-1 and all later ones
//                     use min_lr
//   inverse_sqrt      b * sqrt(max(W, 1) / t)
//   noam              factor * d_model^-1/2 * min(t^-1/2, t * W^-3/2)   (Vaswani et al. 2017, eq.
//   3)
struct FLATSTEP_API Schedule {
  ScheduleKind kind = ScheduleKind::constant;
  double base_lr = 1e-3;  // noam: the factor
  double min_lr = 0.0;
  std::int64_t warmup = 0;
  std::int64_t total = 0;    // warmup_linear, warmup_cosine
  std::int64_t d_model = 0;  // noam

  // Throws InvalidArgument naming the member that is out of range.
  void check() const;

  // The learning rate of the step after `step` finished ones. Throws InvalidArgument for step < 0.
  double operator()(std::int64_t step) const;
};

}  // namespace flatstep
