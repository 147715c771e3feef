// The scalars and random words of dropout, for the host and the device; the counter is laid out in
// flatstep/dropout.h.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "core/tasks.h"
#include "flatstep/dropout.h"

namespace flatstep {

static inline DropoutTask dropout_task(double p, const DropoutKey& key) {
  const double threshold = std::min(std::nearbyint(p * 4294967296.0), 4294967295.0);
  return {key.seed, static_cast<std::uint64_t>(key.step), key.site,
          static_cast<std::uint32_t>(threshold), static_cast<float>(1.0 / (1.0 - p))};
}

// The counter of indices 4 block to 4 block + 3.
static FLATSTEP_ELEMENT PhiloxWord4 dropout_counter(const DropoutTask& task, std::uint64_t block) {
  return {{static_cast<std::uint32_t>(block),
           static_cast<std::uint32_t>((block >> 32) & 0xffffu) |
               static_cast<std::uint32_t>(((task.step >> 32) & 0xffffu) << 16),
           static_cast<std::uint32_t>(task.step), task.site}};
}

// Their words: an element is dropped where its word is below the threshold.
[[maybe_unused]] static FLATSTEP_ELEMENT PhiloxWord4 dropout_words(const DropoutTask& task,
                                                                   std::uint64_t block) {
  const PhiloxWord4 counter = dropout_counter(task, block);
  return philox(task.seed, counter.word[0], counter.word[1], counter.word[2], counter.word[3]);
}

}  // namespace flatstep
