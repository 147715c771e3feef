// What the formulas of schedules share with their checks: the options that were left open.
#pragma once

#include <cstdint>

#include "core/checks.h"
#include "flatstep/schedule.h"

namespace flatstep {

// Beyond it, float64 does not hold every count.
constexpr std::int64_t kLargestCount = std::int64_t{1} << 53;

double schedule_init_lr(const Schedule& schedule);
double schedule_min_lr(const Schedule& schedule);

// wsd: the steps of the decay.
std::int64_t schedule_decay(const Schedule& schedule);

// one_cycle: the steps, not always whole, where the rate is at base_lr and again at init_lr.
struct OneCyclePhases {
  double peak, second;
  bool three;
};
OneCyclePhases one_cycle_phases(const Schedule& schedule);

}  // namespace flatstep
