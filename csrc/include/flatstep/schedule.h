// Schedules of a learning rate, or of any other number such as the weight decay: pure functions of
// the number of optimizer steps already done, computed in float64.
//
// Symbols: k = steps done (from 0), W = warmup, T = total, b = base_lr, e = min_lr, i = init_lr.
// Libraries agree on the formulas and differ in where they count from; what differs is a
// Convention, and a preset is a named Convention. Members of the Convention are in brackets.
//
//   warm-up, k < W   i + (b - i) * g(p)
//                    p = max(k + [warmup_first], [warmup_least]) / (W + [warmup_extra])
//   decay, k >= W    r = (k + [decay_first] - S) / L, beyond the end as [beyond_end] says;
//                    S = W and L = T - W where nothing else is said
//
//   constant         b, at every step
//   warmup_constant  b
//   warmup_linear    e + (b - e) * (1 - r)
//   warmup_cosine    e + (b - e) * ((1 + cos(2 pi * waves * r)) / 2)^power
//   polynomial       e + (b - e) * (1 - r)^power
//   wsd              b up to S = T - decay, then e + (b - e) * f(r) with L = decay
//   inverse_sqrt     max(e, b * sqrt(s / (max(k + [decay_first], W') - W' + s)))
//                    s = timescale, by default W' = max(W, 1)
//   cosine_restarts  e + (max(b * shrink^n, e) - e) * (1 + cos(pi * r)) / 2 in cycle n, from 0; it
//                    starts at S and is L = period * period_mult^n steps long
//   one_cycle        from i at step 0 up to b at P, with three phases down to i again at Q, down to
//                    e at T - 1; between them start + (end - start) * (1 - f(r)).
//                    P = W - 1 or pct_start * T - 1, Q = 2 P or pct_final * T - 1. If [decay_first]
//                    is 0, the end is at T, P = W or floor(pct_start * T), and Q likewise
//   noam             [scale] * b * d_model^-1/2 * min(s^-1/2, s * W^-3/2) at every step, b a factor
//                    s = max(k + [warmup_first], [warmup_least])  (Vaswani et al. 2017, eq. 3)
//
//   f: linear        1 - r
//      cosine        (1 + cos(pi * r)) / 2                     (Loshchilov & Hutter 2017)
//      sqrt          1 - sqrt(r)                               (Haegele et al. 2024)
//      exponential   2 * 2^-r - 1                              (Megatron-LM)
//      geometric     b * (e / b)^r for e + (b - e) * f(r)      (Park et al. 2019)
//   g(p) = f(1 - p): a warm-up is a decay backwards.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "flatstep/export.h"

namespace flatstep {

enum class ScheduleKind {
  constant,
  warmup_constant,
  warmup_linear,
  warmup_cosine,
  inverse_sqrt,
  noam,
  polynomial,
  wsd,
  one_cycle,
  cosine_restarts
};

enum class DecayShape { linear, cosine, sqrt, exponential, geometric };

// What a schedule does after its end.
//   clamp        r stops at 1. inverse_sqrt keeps the value of step T - 1; cosine_restarts ends
//   after_total  the formula holds up to step T, then min_lr
//   run_on       the formula goes on: a cosine rises again, a line falls below min_lr
enum class BeyondEnd { clamp, after_total, run_on };

// The default is the convention "flatstep": the first step already learns, the last step of the
// warm-up uses base_lr, step T - 1 and all later ones min_lr.
struct FLATSTEP_API Convention {
  // The name of the preset.
  const char* preset = "flatstep";
  int warmup_first = 1;
  int warmup_extra = 0;
  int warmup_least = 0;
  int decay_first = 1;
  BeyondEnd beyond_end = BeyondEnd::clamp;

  // What stands for options that were left open.
  bool init_is_min = false;                   // init_lr: min_lr instead of 0
  double min_lr = 0.0;                        // polynomial
  DecayShape shape = DecayShape::sqrt;        // wsd
  bool decay_is_rest = false;                 // wsd: T - W instead of a fifth of T
  std::int64_t timescale_without_warmup = 0;  // inverse_sqrt with W = 0; 0: W' = s = 1
  double pct_final = 0.0;                     // one_cycle; 0: as far behind the peak as before it
  bool linear_is_three_phase = false;         // one_cycle

  // What only one library does.
  bool init_is_first = false;  // a given init_lr is the first step's rate: p = k / (W - 1)
  bool shrinks_min = false;    // cosine_restarts: min_lr shrinks too
  int least_warmup = 0;        // inverse_sqrt
  double scale = 1.0;          // noam
};

// The convention of a preset. Throws InvalidArgument that names those this schedule has.
FLATSTEP_API Convention convention_of(ScheduleKind kind, const std::string& preset);
FLATSTEP_API std::vector<std::string> presets_of(ScheduleKind kind);
FLATSTEP_API const char* name_of(ScheduleKind kind);
FLATSTEP_API const char* name_of(DecayShape shape);

//   Schedule s{ScheduleKind::warmup_cosine, 3e-4, 3e-5, 100, 10000};
//   s.convention = convention_of(s.kind, "hf");
//   s.check();
//   double lr = s(optimizer.step_count());
struct FLATSTEP_API Schedule {
  ScheduleKind kind = ScheduleKind::constant;
  double base_lr = 1e-3;         // noam: the factor
  std::optional<double> min_lr;  // open: 0; one_cycle: init_lr / 10000; polynomial: [min_lr]
  std::int64_t warmup = 0;
  std::optional<std::int64_t> total;  // open: no end, where the schedule has a meaning without
  std::int64_t d_model = 0;           // noam
  Convention convention;

  std::optional<double> init_lr;                 // open: 0; one_cycle: base_lr / 25
  DecayShape warmup_shape = DecayShape::linear;  // not geometric
  double power = 1.0;                            // polynomial, warmup_cosine
  double waves = 0.5;                            // warmup_cosine: whole waves from W to T
  std::optional<std::int64_t> timescale;         // inverse_sqrt
  std::optional<std::int64_t> decay;             // wsd: steps; open: a fifth of the total
  std::optional<DecayShape> shape;               // wsd; one_cycle: linear or cosine (open: cosine)
  std::optional<double> pct_start;               // one_cycle: instead of warmup
  std::optional<double> pct_final;     // one_cycle, three phases: where init_lr is reached
  std::optional<bool> three_phase;     // one_cycle; open: false
  std::optional<std::int64_t> cycles;  // cosine_restarts: that fill T - W; open: 1
  std::optional<std::int64_t> period;  // cosine_restarts: the first cycle's, not cycles
  double period_mult = 1.0;            // cosine_restarts, >= 1
  double shrink = 1.0;                 // cosine_restarts, above 0 to 1

  // Throws InvalidArgument naming the member that is out of range. Counts of steps go to 2^53.
  void check() const;

  // The learning rate of the step after `step` finished ones. Throws InvalidArgument for a step
  // below 0 or above 2^53.
  double operator()(std::int64_t step) const;
};

enum class ScaleRule { linear, sqrt };

// The learning rate for another batch: base_lr * q (Goyal et al. 2017) or base_lr * sqrt(q)
// (Krizhevsky 2014), with q = batch / base_batch.
FLATSTEP_API double scale_lr(double base_lr, std::int64_t batch, std::int64_t base_batch,
                             ScaleRule rule = ScaleRule::linear);

}  // namespace flatstep
