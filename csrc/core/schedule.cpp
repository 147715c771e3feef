// The formulas of flatstep/schedule.h, with its symbols.
#include "flatstep/schedule.h"

#include <algorithm>
#include <cmath>

#include "core/schedule.h"

namespace flatstep {
namespace {

constexpr double kPi = 3.14159265358979323846;

double half_cosine(double r) { return 0.5 * (1.0 + std::cos(kPi * r)); }

// f(r) of the header: 1 at r = 0, 0 at r = 1.
double fall(DecayShape shape, double r) {
  switch (shape) {
    case DecayShape::cosine:
      return half_cosine(r);
    case DecayShape::sqrt:
      return 1.0 - std::sqrt(r);
    case DecayShape::exponential:
      return 2.0 * std::pow(0.5, r) - 1.0;
    default:
      return 1.0 - r;
  }
}

// The numbers of a schedule as float64, with what was left open filled in.
struct Values {
  explicit Values(const Schedule& schedule)
      : given(schedule),
        convention(schedule.convention),
        b(schedule.base_lr),
        e(schedule_min_lr(schedule)),
        i(schedule_init_lr(schedule)),
        w(static_cast<double>(schedule.warmup)),
        t(static_cast<double>(schedule.total.value_or(0))) {}

  const Schedule& given;
  const Convention& convention;
  double b, e, i, w, t;

  // True from the step on that a schedule with a last step is over at.
  bool over(double k) const {
    if (!given.total || convention.beyond_end == BeyondEnd::run_on) return false;
    return convention.beyond_end == BeyondEnd::clamp ? k >= t : k > t;
  }
};

double warm_up(const Values& v, double k) {
  double first = v.convention.warmup_first, extra = v.convention.warmup_extra;
  if (v.convention.init_is_first && v.given.init_lr) {
    first = 0;
    extra = v.given.warmup > 1 ? -1 : 0;
  }
  const double reached = std::max(k + first, static_cast<double>(v.convention.warmup_least));
  const double p = reached / (v.w + extra);
  const double g =
      v.given.warmup_shape == DecayShape::linear ? p : fall(v.given.warmup_shape, 1 - p);
  return v.i + (v.b - v.i) * g;
}

// r of a decay that starts at S and takes L steps.
double progress(const Values& v, double k, double start, double length) {
  if (length <= 0) return 1.0;
  const double r = std::max((k + v.convention.decay_first - start) / length, 0.0);
  const bool stops = v.convention.beyond_end == BeyondEnd::clamp || v.over(k);
  return stops ? std::min(r, 1.0) : r;
}

double between(double from, double to, double share) { return to + (from - to) * share; }

double stable_then_decay(const Values& v, double k) {
  const double decay = static_cast<double>(schedule_decay(v.given));
  const double start = v.t - decay;
  if (k < start) return v.b;
  const double r = progress(v, k, start, decay);
  const DecayShape shape = v.given.shape.value_or(v.convention.shape);
  if (shape == DecayShape::geometric) return v.b * std::pow(v.e / v.b, r);
  return between(v.b, v.e, fall(shape, r));
}

double inverse_sqrt(const Values& v, double k) {
  if (v.over(k)) {
    if (v.convention.beyond_end == BeyondEnd::after_total) return v.e;
    k = v.t - 1;
    if (k < v.w) return v.b;  // total == warmup: the value of the last step
  }
  const double without = static_cast<double>(v.convention.timescale_without_warmup);
  const double start = v.w > 0 || without > 0 ? v.w : 1.0;
  const double timescale = v.given.timescale ? static_cast<double>(*v.given.timescale)
                                             : (v.w > 0 ? v.w : std::max(without, 1.0));
  const double reached = std::max(k + v.convention.decay_first, start);
  return std::max(v.e, v.b * std::sqrt(timescale / (reached - start + timescale)));
}

// Which cycle of cosine_restarts a step is in, and how far.
struct Cycle {
  double number, r;
};

Cycle equal_cycle(double x, double first, double cycles, double length) {
  // In units of 1 / cycles of a step everything is a whole number, so no restart is missed.
  const double scaled = x * cycles;
  return {std::floor(scaled / length), (std::fmod(scaled, length) + first * cycles) / length};
}

Cycle growing_cycle(double x, double first, double period, double mult) {
  const auto start = [&](double n) { return period * (std::pow(mult, n) - 1) / (mult - 1); };
  double n = std::floor(std::log1p(x / period * (mult - 1)) / std::log(mult));
  // The logarithm may be off by one at a restart.
  if (n > 0 && x < start(n)) n -= 1;
  if (x >= start(n + 1)) n += 1;
  return {n, (x - start(n) + first) / (period * std::pow(mult, n))};
}

double cosine_restarts(const Values& v, double k) {
  if (v.over(k)) return v.e;
  const double mult = v.given.period_mult, first = v.convention.decay_first, x = k - v.w;
  const double cycles = v.given.period ? 1 : static_cast<double>(v.given.cycles.value_or(1));
  double length = v.given.period ? static_cast<double>(*v.given.period) : v.t - v.w;
  if (length <= 0) return v.e;
  Cycle cycle;
  if (mult == 1) {
    cycle = equal_cycle(x, first, cycles, length);
  } else {
    if (!v.given.period) length *= (mult - 1) / (std::pow(mult, cycles) - 1);
    cycle = growing_cycle(x, first, length, mult);
  }
  const double shrunk = std::pow(v.given.shrink, cycle.number);
  const double low = v.convention.shrinks_min ? v.e * shrunk : v.e;
  return between(std::max(v.b * shrunk, low), low, half_cosine(std::min(cycle.r, 1.0)));
}

double one_cycle(const Values& v, double k) {
  const OneCyclePhases phases = one_cycle_phases(v.given);
  const DecayShape shape = v.given.shape.value_or(DecayShape::cosine);
  const auto move = [&](double from, double to, double start, double end) {
    double r = end > start ? (k - start) / (end - start) : 1.0;
    if (v.convention.beyond_end == BeyondEnd::clamp || v.over(k)) r = std::min(r, 1.0);
    return between(from, to, fall(shape, r));
  };
  const double last = v.t - v.convention.decay_first;
  if (k <= phases.peak) return move(v.i, v.b, 0, phases.peak);
  if (!phases.three) return move(v.b, v.e, phases.peak, last);
  if (k <= phases.second) return move(v.b, v.i, phases.peak, phases.second);
  return move(v.i, v.e, phases.second, last);
}

double noam(const Values& v, double k) {
  const double s =
      std::max(k + v.convention.warmup_first, static_cast<double>(v.convention.warmup_least));
  const double width = static_cast<double>(v.given.d_model);
  return v.convention.scale * v.b / std::sqrt(width) *
         std::min(1.0 / std::sqrt(s), s / (v.w * std::sqrt(v.w)));
}

}  // namespace

double Schedule::operator()(std::int64_t step) const {
  require(step >= 0 && step <= kLargestCount, "step", step,
          "a number of finished steps from 0 to 2^53");
  const Values v(*this);
  const double k = static_cast<double>(step);
  if (kind == ScheduleKind::constant) return base_lr;
  if (kind == ScheduleKind::noam) return noam(v, k);
  if (kind == ScheduleKind::one_cycle) return one_cycle(v, k);
  if (step < warmup) return warm_up(v, k);
  const double r = progress(v, k, v.w, v.t - v.w);
  switch (kind) {
    case ScheduleKind::warmup_linear:
      return between(v.b, v.e, 1 - r);
    case ScheduleKind::warmup_cosine:
      return between(v.b, v.e, std::pow(half_cosine(2 * waves * r), power));
    case ScheduleKind::polynomial:
      return between(v.b, v.e, std::pow(1 - r, power));
    case ScheduleKind::wsd:
      return stable_then_decay(v, k);
    case ScheduleKind::inverse_sqrt:
      return inverse_sqrt(v, k);
    case ScheduleKind::cosine_restarts:
      return cosine_restarts(v, k);
    default:
      return base_lr;
  }
}

double scale_lr(double base_lr, std::int64_t batch, std::int64_t base_batch, ScaleRule rule) {
  require(std::isfinite(base_lr) && base_lr >= 0, "base_lr", base_lr, "a finite number >= 0");
  require(batch >= 1 && batch <= kLargestCount, "batch", batch, "a size from 1 to 2^53");
  require(base_batch >= 1 && base_batch <= kLargestCount, "base_batch", base_batch,
          "a size from 1 to 2^53");
  const double q = static_cast<double>(batch) / static_cast<double>(base_batch);
  return base_lr * (rule == ScaleRule::linear ? q : std::sqrt(q));
}

}  // namespace flatstep
