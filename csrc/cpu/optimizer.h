#pragma once

#include "core/backend.h"

namespace flatstep::cpu {

struct UpdateTask {
  const OptimizerOptions& options;
  const StepOptions& step_options;
  const std::vector<Segment>& segments;
  const std::vector<void*>& grads;
  DType grad_dtype;
  std::int64_t step;       // of this update, from 1
  double grad_multiplier;  // clip_scale / grad_scale
};

// The tensors are cut into the chunks of GradPartials.
void update(const UpdateTask& task, const GradPartials& chunks);

std::unique_ptr<StepEngine> step_engine(const std::vector<Segment>& segments);

}  // namespace flatstep::cpu
