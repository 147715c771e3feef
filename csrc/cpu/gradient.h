#pragma once

#include <vector>

#include "core/backend.h"

namespace flatstep::cpu {

// See Backend.
double grad_norm(const std::vector<const void*>& grads, DType dtype, GradPartials& partials);
GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype,
                      const GradPartials& chunks, double limit);
void scale(const std::vector<void*>& grads, DType dtype, const GradPartials& chunks, double factor);
void accumulate(const std::vector<void*>& totals, const std::vector<const void*>& src,
                const AccumulateOptions& options, GradPartials& partials);

}  // namespace flatstep::cpu
