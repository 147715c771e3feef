// What a step makes of the gradients' norm, for the host and the device.
#pragma once

#include "element/qualifier.h"

namespace flatstep {

// min(1, max_norm / (norm + 1e-6)), as PyTorch; 1 where the norm is not a number.
[[maybe_unused]] static FLATSTEP_ELEMENT double clip_scale(double norm, double max_norm) {
  const double scale = max_norm / (norm + 1e-6);
  return scale < 1.0 ? scale : 1.0;
}

struct StepScale {
  double grad_norm, clip_scale;
  double multiplier;  // of the gradients
  // Whether an element may be beyond the type's range, or one that scaling would take there: such
  // as are not at most `limit`.
  bool look;
  double limit;
};

// `norm` is that of the gradients as given, `max_norm` 0 for none, `largest` what largest_gradient
// says, and `type_largest` the largest number of the type of the arithmetic.
[[maybe_unused]] static FLATSTEP_ELEMENT StepScale step_scale(double norm, double grad_scale,
                                                              double max_norm, double largest,
                                                              double type_largest) {
  StepScale scale{};
  scale.grad_norm = norm / grad_scale;
  scale.clip_scale = max_norm > 0 ? clip_scale(scale.grad_norm, max_norm) : 1.0;
  scale.multiplier = scale.clip_scale / grad_scale;
  scale.look = !(scale.grad_norm * scale.clip_scale <= largest);
  const double limit = largest / scale.multiplier;
  scale.limit = limit < type_largest ? limit : type_largest;
  return scale;
}

}  // namespace flatstep
