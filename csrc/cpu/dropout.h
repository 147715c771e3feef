// Dropout on the CPU: the mask's scalars, and a loop over an array's multipliers.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/tasks.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "flatstep/dropout.h"

namespace flatstep::cpu {

inline DropoutTask dropout_task(double p, const DropoutKey& key) {
  const double threshold = std::min(std::nearbyint(p * 4294967296.0), 4294967295.0);
  return {key.seed, static_cast<std::uint64_t>(key.step), key.site,
          static_cast<std::uint32_t>(threshold), static_cast<float>(1.0 / (1.0 - p))};
}

// visit(i, multiplier) for i in [0, size), where element i has the mask's index first + i.
template <class Visit>
void for_each_multiplier(const DropoutTask& task, std::int64_t first, std::int64_t size,
                         Visit visit) {
  constexpr std::int64_t kStretch = 16384;
  parallel_ranges(size, kStretch, [&](std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t kBuffer = 1024;
    float multipliers[kBuffer];
    for (std::int64_t at = begin; at < end; at += kBuffer) {
      const std::int64_t count = std::min(kBuffer, end - at);
      kernels().dropout_multipliers(task, first + at, count, multipliers);
      for (std::int64_t i = 0; i < count; ++i) visit(at + i, multipliers[i]);
    }
  });
}

}  // namespace flatstep::cpu
