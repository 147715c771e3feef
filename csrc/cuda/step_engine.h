// Steps of an optimizer on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "core/backend.h"

namespace flatstep::cuda {

// Steps run on `stream` where they name none. Throws InvalidArgument for what only the CPU has.
std::unique_ptr<StepEngine> step_engine(const OptimizerOptions& options,
                                        const std::vector<Segment>& segments, int device,
                                        cudaStream_t stream);

}  // namespace flatstep::cuda
