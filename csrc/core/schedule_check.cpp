// Checks of a schedule, and what stands for the options that were left open.
#include <algorithm>
#include <cmath>

#include "core/schedule.h"

namespace flatstep {
namespace {

using Kind = ScheduleKind;

void require_rate(double value, const char* argument) {
  require(std::isfinite(value) && value >= 0, argument, value, "a finite number >= 0");
}

void require_up_to_base(const std::optional<double>& value, double base, const char* argument) {
  if (!value) return;
  require(std::isfinite(*value) && *value >= 0 && *value <= base, argument, *value,
          "a number from 0 to base_lr");
}

void require_count(const std::optional<std::int64_t>& value, const char* argument) {
  if (!value) return;
  require(*value >= 1 && *value <= kLargestCount, argument, *value,
          "a number of steps from 1 to 2^53");
}

void require_fraction(const std::optional<double>& value, const char* argument) {
  if (!value) return;
  require(*value >= 0 && *value <= 1, argument, *value, "a share of total, from 0 to 1");
}

void require_positive(double value, const char* argument) {
  require(std::isfinite(value) && value > 0, argument, value, "a finite number above 0");
}

bool needs_total(const Schedule& s) {
  switch (s.kind) {
    case Kind::warmup_linear:
    case Kind::warmup_cosine:
    case Kind::polynomial:
    case Kind::wsd:
    case Kind::one_cycle:
      return true;
    case Kind::cosine_restarts:
      return !s.period;
    default:
      return false;
  }
}

void check_steps(const Schedule& s) {
  require(s.warmup >= 0 && s.warmup <= kLargestCount, "warmup", s.warmup,
          "a number of steps from 0 to 2^53");
  if (needs_total(s) && !s.total) fail("total", "none", "a number of steps from 1 to 2^53");
  require_count(s.total, "total");
  require(!s.total || s.warmup <= *s.total, "warmup", s.warmup, "at most total");
}

void check_noam(const Schedule& s) {
  require(s.d_model >= 1 && s.d_model <= kLargestCount, "d_model", s.d_model, "a width >= 1");
  require(s.warmup >= 1, "warmup", s.warmup, "a number of steps >= 1");
}

void check_wsd(const Schedule& s) {
  if (s.decay) {
    require(*s.decay >= 0 && *s.decay <= *s.total - s.warmup, "decay", *s.decay,
            "a number of steps from 0 to total - warmup");
  }
  const double low = schedule_min_lr(s);
  require(s.shape.value_or(s.convention.shape) != DecayShape::geometric || low > 0, "min_lr", low,
          "a number above 0 for the geometric shape");
}

void check_one_cycle(const Schedule& s) {
  require_fraction(s.pct_start, "pct_start");
  require_fraction(s.pct_final, "pct_final");
  const DecayShape shape = s.shape.value_or(DecayShape::cosine);
  if (shape != DecayShape::cosine && shape != DecayShape::linear) {
    fail("shape", name_of(shape), "linear or cosine");
  }
  const OneCyclePhases phases = one_cycle_phases(s);
  const double last = static_cast<double>(*s.total) - s.convention.decay_first;
  if (phases.three && (phases.second < phases.peak || phases.second > last)) {
    if (s.pct_final) fail("pct_final", to_text(*s.pct_final), "a share of total behind the peak");
    fail("three_phase", "a peak behind the middle", "room for three phases, or pct_final");
  }
}

void check_restarts(const Schedule& s) {
  if (s.period && s.cycles) {
    fail("period", std::to_string(*s.period), "none together with cycles");
  }
  require_count(s.period, "period");
  if (s.cycles) {
    require(*s.cycles >= 1 && *s.cycles <= 1000000, "cycles", *s.cycles, "a count from 1 to 10^6");
  }
  require(std::isfinite(s.period_mult) && s.period_mult >= 1, "period_mult", s.period_mult,
          "a finite number >= 1");
  require(s.shrink > 0 && s.shrink <= 1, "shrink", s.shrink, "a number above 0, up to 1");
}

}  // namespace

double schedule_init_lr(const Schedule& s) {
  if (s.init_lr) return *s.init_lr;
  if (s.kind == Kind::one_cycle) return s.base_lr / 25.0;
  return s.convention.init_is_min ? schedule_min_lr(s) : 0.0;
}

double schedule_min_lr(const Schedule& s) {
  if (s.min_lr) return *s.min_lr;
  if (s.kind == Kind::one_cycle) return schedule_init_lr(s) / 1e4;
  return s.kind == Kind::polynomial ? s.convention.min_lr : 0.0;
}

std::int64_t schedule_decay(const Schedule& s) {
  if (s.decay) return *s.decay;
  const std::int64_t total = s.total.value_or(0),
                     rest = std::max<std::int64_t>(total - s.warmup, 0);
  if (s.convention.decay_is_rest) return rest;
  // llm.c computes the start of the decay in float32.
  const auto start = static_cast<std::int64_t>(0.8f * static_cast<float>(total));
  return std::clamp<std::int64_t>(total - start, 0, rest);
}

OneCyclePhases one_cycle_phases(const Schedule& s) {
  const double total = static_cast<double>(s.total.value_or(0));
  const bool inclusive = s.convention.decay_first > 0;
  const auto at = [&](double steps) { return inclusive ? steps - 1 : std::floor(steps); };
  const double peak = at(s.pct_start ? *s.pct_start * total : static_cast<double>(s.warmup));
  const bool linear = s.shape == DecayShape::linear;
  const bool three = s.three_phase.value_or(linear && s.convention.linear_is_three_phase);
  const double share = s.pct_final.value_or(s.convention.pct_final);
  return {peak, share > 0 ? at(share * total) : 2 * peak, three};
}

void Schedule::check() const {
  require_rate(base_lr, kind == Kind::noam ? "factor" : "base_lr");
  require_up_to_base(init_lr, base_lr, "init_lr");
  require_up_to_base(schedule_min_lr(*this), base_lr, "min_lr");
  check_steps(*this);
  require_positive(power, "power");
  require_positive(waves, "waves");
  require_count(timescale, "timescale");
  if (warmup_shape == DecayShape::geometric) {
    fail("warmup_shape", "geometric", "linear, cosine, sqrt or exponential");
  }
  if (kind == Kind::noam) check_noam(*this);
  if (kind == Kind::inverse_sqrt) {
    require(warmup >= convention.least_warmup, "warmup", warmup, "a number of steps >= 1");
  }
  if (kind == Kind::wsd) check_wsd(*this);
  if (kind == Kind::one_cycle) check_one_cycle(*this);
  if (kind == Kind::cosine_restarts) check_restarts(*this);
}

}  // namespace flatstep
