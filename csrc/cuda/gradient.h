// Gradients on the device: partial sums of the norm, scaling, accumulation. Lists have a pointer
// for each tensor of `chunks`; f32, bf16 or f16. Calls queue their work on the stream and return,
// but for those that say that they wait.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/memory.h"
#include "flatstep/error.h"
#include "flatstep/grad.h"

namespace flatstep::cuda {

// What a norm is made of: of each chunk the sum of squares, with the bits of the CPU's, and the
// largest magnitude as bits (inf is above all numbers, NaN above that).
struct PartialSums {
  double* sums;
  std::uint32_t* largest;
};

// What GradPartials::on_device points to.
struct DevicePartials {
  StreamMemory memory{nullptr, FreeInOrder{nullptr}};
  PartialSums sums{};
};

// Makes it, from the stream's memory.
PartialSums make_room(GradPartials& partials, cudaStream_t stream);
// Those that somebody has filled; throws InvalidArgument where nobody has.
inline PartialSums sums_of(const GradPartials& partials) {
  if (partials.on_device == nullptr) {
    throw InvalidArgument(
        "partials: got some without sums on the device, expected those of accumulate or of a "
        "backward pass");
  }
  return static_cast<const DevicePartials*>(partials.on_device.get())->sums;
}

void fill_partials(const void* const* grads, DType dtype, const GradPartials& chunks,
                   const PartialSums& partials, cudaStream_t stream);
// Waits for the norm.
double norm_of(const PartialSums& partials, std::int64_t chunks, cudaStream_t stream);
// The first element whose magnitude is not at most `limit`, as nonfinite_*. Waits for it.
GradNorm first_beyond(const void* const* grads, DType dtype, const GradPartials& chunks,
                      double limit, cudaStream_t stream);

void scale(void* const* grads, DType dtype, const GradPartials& chunks, double factor,
           cudaStream_t stream);
// See flatstep/grad.h.
void accumulate(void* const* totals, const void* const* src, const AccumulateOptions& options,
                const GradPartials& chunks, const PartialSums& partials, cudaStream_t stream);

}  // namespace flatstep::cuda
