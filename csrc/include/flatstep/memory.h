// Memory of a device, for callers that have no library of their own to ask for it. Everything runs
// in the order of the device's stream; on the CPU, at once.
#pragma once

#include <cstddef>

#include "flatstep/export.h"
#include "flatstep/types.h"

namespace flatstep {

// Aligned to 64 bytes at least. Throws std::bad_alloc, or RuntimeFailure with the device's reason.
FLATSTEP_API void* allocate(std::size_t bytes, const Device& device);
// A null pointer is fine.
FLATSTEP_API void release(void* data, const Device& device);

// Memory of the host that the device can write as well, for a CrossEntropyStatus or StepStatus.
FLATSTEP_API void* allocate_status(std::size_t bytes, const Device& device);
FLATSTEP_API void release_status(void* data, const Device& device);

// Between the host and the device. Returns when the host's bytes are read or written.
FLATSTEP_API void copy_to_device(void* to, const void* from, std::size_t bytes,
                                 const Device& device);
FLATSTEP_API void copy_to_host(void* to, const void* from, std::size_t bytes, const Device& device);
FLATSTEP_API void fill_zero(void* data, std::size_t bytes, const Device& device);

// Waits until the stream has done everything it was given; or every stream of the device.
FLATSTEP_API void synchronize(const Device& device);
FLATSTEP_API void synchronize_device(const Device& device);

// Whether the stream is being captured: what it is given is done whenever the graph is launched.
FLATSTEP_API bool capturing(const Device& device);

}  // namespace flatstep
