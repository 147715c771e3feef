#include "flatstep/schedule.h"

#include <algorithm>
#include <cmath>

#include "core/checks.h"

namespace flatstep {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Progress through the decay: 0 up to the end of the warm-up, 1 at step total - 1 and beyond.
double progress(const Schedule& schedule, double t) {
  const double length = static_cast<double>(schedule.total - schedule.warmup);
  if (length <= 0) return 1.0;
  return std::clamp((t - static_cast<double>(schedule.warmup)) / length, 0.0, 1.0);
}

}  // namespace

void Schedule::check() const {
  const char* base = kind == ScheduleKind::noam ? "factor" : "base_lr";
  require(std::isfinite(base_lr) && base_lr >= 0, base, base_lr, "a finite number >= 0");
  require(std::isfinite(min_lr) && min_lr >= 0 && min_lr <= base_lr, "min_lr", min_lr,
          "a number from 0 to base_lr");
  require(warmup >= 0, "warmup", warmup, "a number of steps >= 0");
  if (kind == ScheduleKind::warmup_linear || kind == ScheduleKind::warmup_cosine) {
    require(total >= 1, "total", total, "a number of steps >= 1");
    require(warmup <= total, "warmup", warmup, "at most total");
  }
  if (kind == ScheduleKind::noam) {
    require(d_model >= 1, "d_model", d_model, "a width >= 1");
    require(warmup >= 1, "warmup", warmup, "a number of steps >= 1");
  }
}

double Schedule::operator()(std::int64_t step) const {
  require(step >= 0, "step", step, "a number of finished steps >= 0");
  const double t = static_cast<double>(step) + 1.0;
  const double w = static_cast<double>(warmup);
  if (kind == ScheduleKind::noam) {
    return base_lr / std::sqrt(static_cast<double>(d_model)) *
           std::min(1.0 / std::sqrt(t), t / (w * std::sqrt(w)));
  }
  if (step < warmup && kind != ScheduleKind::constant) return base_lr * (t / w);
  switch (kind) {
    case ScheduleKind::warmup_linear:
      return min_lr + (base_lr - min_lr) * (1.0 - progress(*this, t));
    case ScheduleKind::warmup_cosine:
      return min_lr + (base_lr - min_lr) * (0.5 * (1.0 + std::cos(kPi * progress(*this, t))));
    case ScheduleKind::inverse_sqrt:
      return base_lr * std::sqrt(std::max(w, 1.0) / t);
    default:
      return base_lr;
  }
}

}  // namespace flatstep
