// The update of all tensors on the device, with the bits of the CPU's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/decide.h"

namespace flatstep::cuda {

// What belongs to a tensor beside its gradient; as in Segment.
struct TensorRecord {
  void* param;
  void *state1, *state2, *state3;
  std::uint16_t *scale1, *scale2;
  void* bf16_copy;
  std::int32_t group;
};

struct UpdateCall {
  const TensorRecord* records;
  const UpdateScalars<float>* scalars;
  const StepState* state;
  StepStatus* status;
  std::uint64_t seed;
  DType param_dtype, grad_dtype;
  bool zero_grad;
};

// After `decide`. A step that it skips changes nothing but the status, which then gets the place of
// the first element beyond the limit.
void update(const UpdateCall& call, Algorithm algorithm, StateFormat format, void* const* grads,
            const GradPartials& chunks, cudaStream_t stream);

}  // namespace flatstep::cuda
