// Dropout on the CPU: a loop over an array's multipliers.
#pragma once

#include <algorithm>

#include "core/dropout_task.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {

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
