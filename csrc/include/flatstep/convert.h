// Numbers of 16 bits and f32.
#pragma once

#include <cstdint>

#include "flatstep/export.h"
#include "flatstep/types.h"

namespace flatstep {

// f32 to bf16 or f16, rounded to nearest even, or back. Throws InvalidArgument for other pairs of
// types, and for buffers that are null, misaligned or overlap.
FLATSTEP_API void convert(const void* from, DType from_dtype, void* to, DType to_dtype,
                          std::int64_t size, Device device = {});

}  // namespace flatstep
