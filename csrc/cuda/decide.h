// Between the visit for the norm and the update: the norm, the clip's scale, whether the step can
// be taken, and its scalars, all on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tasks.h"
#include "cuda/gradient.h"
#include "flatstep/optim.h"

namespace flatstep::cuda {

// Tensors with the same lr_scale, betas and weight decay.
struct StepGroup {
  UpdateGroup scalars;
  bool own_weight_decay;  // else the optimizer's, which may change
};

// What an optimizer keeps on the device from step to step.
struct StepState {
  std::int64_t step_count;
  std::int32_t consecutive_skips;
  // Of the present step: whether it is skipped, and then for the update to look up which element
  // is not at most the limit.
  std::int32_t skipped;
  std::int64_t beyond_chunk;
  double limit;
};

struct DecideCall {
  PartialSums partials;
  std::int64_t chunks;
  double lr;
  const double* device_lr;  // instead of lr, or null
  double max_norm;          // 0 for none
  double grad_scale;
  double largest;  // of a scaled gradient: see largest_gradient in core/optim.h
  double weight_decay;
  const StepGroup* groups;
  UpdateScalars<float>* scalars;  // one a group
  std::int32_t group_count;
  StepState* state;
  StepStatus* status;  // of the device, or pinned
};

void decide(const DecideCall& call, cudaStream_t stream);

}  // namespace flatstep::cuda
