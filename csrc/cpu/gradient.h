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

// A factor as two of the type, so that neither is subnormal: it may be too small for one float
// though the products are not.
template <class T>
void split_factor(double factor, T (&parts)[2]) {
  constexpr double kPower = 0x1p64;
  const double magnitude = factor < 0 ? -factor : factor;
  parts[0] = T(1);
  if (magnitude < 1 / kPower) parts[0] = static_cast<T>(1 / kPower);
  if (magnitude > kPower) parts[0] = static_cast<T>(kPower);
  parts[1] = static_cast<T>(factor / static_cast<double>(parts[0]));
}

}  // namespace flatstep::cpu
