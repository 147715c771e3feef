// The fixed chunks of a list of tensors, as tasks for all threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/parallel.h"
#include "flatstep/grad.h"

namespace flatstep::cpu {

constexpr std::int64_t kChunk = GradPartials::kChunk;

// visit(tensor, begin, end, chunk) for every chunk, on all threads. Backwards, the first to be
// visited are those that a visit just before has left in the cache.
template <class Visit>
void for_each_chunk(const GradPartials& table, Order order, const Visit& visit) {
  // Neighbours go together; those of a small model are few, and many of them short.
  const std::int64_t at_once = std::clamp<std::int64_t>(table.chunks() / 16, 1, 8);
  const std::int64_t tasks = (table.chunks() + at_once - 1) / at_once;
  parallel_for(
      tasks,
      [&](std::int64_t task, int) {
        const std::int64_t first = task * at_once;
        const std::int64_t last = std::min(first + at_once, table.chunks());
        const auto& starts = table.first_chunk;
        std::size_t tensor = static_cast<std::size_t>(
            std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1);
        for (std::int64_t chunk = first; chunk < last; ++chunk) {
          while (chunk >= starts[tensor + 1]) ++tensor;
          const std::int64_t begin = (chunk - starts[tensor]) * kChunk;
          visit(tensor, begin, std::min(begin + kChunk, table.sizes[tensor]), chunk);
        }
      },
      order);
}

}  // namespace flatstep::cpu
