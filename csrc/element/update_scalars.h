// The scalars of a step, from plain numbers in double.
#pragma once

#include "element/power.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// Of the update number `step`, from 1. The gradients are multiplied by `multiplier`.
template <class T>
FLATSTEP_ELEMENT UpdateScalars<T> scalars_of(const UpdateGroup& group, double rate,
                                             std::int64_t step, double multiplier) {
  const double lr = rate * group.lr_scale;
  const double bias_correction1 = 1.0 - power(group.beta1, step);
  const double correction2 = square_root(1.0 - power(group.beta2, step));
  UpdateScalars<T> s{};
  s.lr = static_cast<T>(lr);
  s.weight_decay = static_cast<T>(group.weight_decay);
  split_factor(group.maximize ? -multiplier : multiplier, s.grad_scale);
  s.one_minus_beta1 = static_cast<T>(1.0 - group.beta1);
  s.one_minus_beta2 = static_cast<T>(1.0 - group.beta2);
  s.beta2 = static_cast<T>(group.beta2);
  s.lerp_from_gradient = s.one_minus_beta1 >= T(0.5);
  s.lerp_weight = s.lerp_from_gradient ? s.one_minus_beta1 - T(1) : s.one_minus_beta1;
  s.bias_correction1 = divisor_of<T>(bias_correction1);
  s.bias_correction2_sqrt = divisor_of<T>(correction2);
  s.eps = static_cast<T>(group.eps);
  s.correction = static_cast<T>(correction2 / bias_correction1);
  s.eps_corrected = static_cast<T>(group.eps * correction2);
  s.step_size = static_cast<T>(lr / bias_correction1);
  s.decay_factor = static_cast<T>(1.0 - lr * group.weight_decay);
  s.momentum = static_cast<T>(group.momentum);
  s.one_minus_dampening = static_cast<T>(1.0 - group.dampening);
  s.nesterov = group.nesterov;
  s.first_step = step == 1;
  return s;
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
