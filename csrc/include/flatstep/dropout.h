// Counter-based dropout. An element is kept or dropped by a pure function of
// (seed, step, site, index): Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405) with
//   key     = low and high word of seed
//   counter = low32(index / 4), (index / 4)[32..47] | step[32..47] << 16, low32(step), site
// of whose four output words number index % 4 decides: kept where it is >= round(p * 2^32).
// So a backward pass or a resumed run regenerates the mask, and every device makes the same one.
#pragma once

#include <cstdint>

#include "flatstep/export.h"
#include "flatstep/types.h"

namespace flatstep {

struct DropoutKey {
  std::uint64_t seed = 0;
  std::int64_t step = 0;   // in [0, 2^48)
  std::uint32_t site = 0;  // which dropout layer
};

// out[i] = kept ? x[i] * float(1 / (1 - p)) : 0, f32, for indices first .. first + size - 1.
// x and out are the same buffer or do not overlap. Throws InvalidArgument unless 0 <= p < 1.
FLATSTEP_API void dropout(const float* x, float* out, std::int64_t size, double p,
                          const DropoutKey& key, std::int64_t first = 0, Device device = {});

// out[i] = 1 where kept, else 0.
FLATSTEP_API void dropout_mask(std::uint8_t* out, std::int64_t size, double p,
                               const DropoutKey& key, std::int64_t first = 0, Device device = {});

}  // namespace flatstep
