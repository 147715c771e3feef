#pragma once

#include <algorithm>
#include <limits>
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
  constexpr double kSmall = 0x1p-64, kLarge = 0x1p126;
  constexpr double kLargest = static_cast<double>(std::numeric_limits<T>::max());
  const double magnitude = factor < 0 ? -factor : factor;
  parts[0] = T(1);
  if (magnitude < kSmall) parts[0] = static_cast<T>(kSmall);
  if (magnitude > kLarge) parts[0] = static_cast<T>(kLarge);
  // An infinite factor would make something of zeros.
  const double rest = factor / static_cast<double>(parts[0]);
  parts[1] = static_cast<T>(std::clamp(rest, -kLargest, kLargest));
}

}  // namespace flatstep::cpu
