// The update of one element, or of a vector of them: F is T or Vector<T>. The formulae are in
// flatstep/optim.h; the torch forms follow, rounding by rounding, the fused CPU kernels of
// torch.optim.
#pragma once

#include <type_traits>

#include "core/tasks.h"
#include "element/number.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

template <class F, class T>
FLATSTEP_ELEMENT F scaled_gradient(F g, const UpdateScalars<T>& s) {
  return g * s.grad_scale[0] * s.grad_scale[1];
}

// m, v and the L2 decay of Adam, or AdamW's decay of torch mode.
template <bool kDecoupled, Rounding kRounding, class F, class T>
FLATSTEP_ELEMENT void update_moments(F g, F& p, F& m, F& v, const UpdateScalars<T>& s) {
  const auto times_add = [](T a, F b, F c) { return multiply_add(splat<F>(a), b, c); };
  if (!kDecoupled) g = times_add(s.weight_decay, p, g);
  if (kDecoupled && kRounding != Rounding::native) p = p * s.decay_factor;
  if (kRounding == Rounding::native) {
    m = times_add(s.one_minus_beta1, g - m, m);
  } else {  // torch.lerp goes from the nearer end
    m = times_add(s.lerp_weight, g - m, s.lerp_from_gradient ? g : m);
  }
  if (kRounding == Rounding::torch) {
    v = multiply_add(s.one_minus_beta2 * g, g, s.beta2 * v);
  } else if (kRounding == Rounding::torch_tail) {
    v = times_add(s.beta2, v, s.one_minus_beta2 * g * g);
  } else {
    v = times_add(s.one_minus_beta2, g * g - v, v);
  }
}

// x / divisor for finite x, rounded once: the sum is exact to twice the precision, and no quotient
// of two numbers lies so near to the middle between two (Brisebarre, Muller & Raina 2004, IEEE
// Trans. Computers 53). A division costs as much as the rest of an update's arithmetic.
template <class F, class T>
FLATSTEP_ELEMENT F divide(F x, const Divisor<T>& divisor) {
#if FLATSTEP_HAS_FMA
  return multiply_add(x, splat<F>(divisor.reciprocal), x * divisor.rest);
#else
  return x / divisor.value;
#endif
}

// The new parameter; v stands in the denominator.
template <bool kDecoupled, Rounding kRounding, class F, class T>
FLATSTEP_ELEMENT F adam_param(F p, F m, F v, const UpdateScalars<T>& s) {
  if (kRounding != Rounding::native) {
    const F denominator = square_root(v) / s.bias_correction2_sqrt.value + s.eps;
    return p - (s.step_size * m) / denominator;
  }
  const F denominator = divide(square_root(v), s.bias_correction2_sqrt) + s.eps;
  const F u = divide(m, s.bias_correction1) / denominator;
  const F decayed = kDecoupled ? multiply_add(splat<F>(s.weight_decay), p, u) : u;
  return multiply_add(splat<F>(-s.lr), decayed, p);
}

// The same with one division, for moments that have fewer digits than the divisions would keep.
template <bool kDecoupled, class F, class T>
FLATSTEP_ELEMENT F adam_param_short(F p, F m, F v, const UpdateScalars<T>& s) {
  const F u = s.correction * m / (square_root(v) + s.eps_corrected);
  const F decayed = kDecoupled ? multiply_add(splat<F>(s.weight_decay), p, u) : u;
  return multiply_add(splat<F>(-s.lr), decayed, p);
}

// The new parameter, and the new momentum buffer if there is one.
template <bool kTorch, bool kMomentum, bool kFirst, bool kNesterov, class F, class T>
FLATSTEP_ELEMENT F sgd_param(F p, F g, F& buffer, const UpdateScalars<T>& s) {
  // Without decay -0 stays -0, in PyTorch too.
  if (s.weight_decay != T(0)) g = multiply_add(splat<F>(s.weight_decay), p, g);
  F direction = g;
  if (kMomentum) {
    if (kFirst) {
      buffer = g;
    } else if (kTorch) {
      buffer = multiply_add(splat<F>(s.one_minus_dampening), g, s.momentum * buffer);
    } else {
      buffer = multiply_add(splat<F>(s.momentum), buffer, s.one_minus_dampening * g);
    }
    direction = kNesterov ? multiply_add(splat<F>(s.momentum), buffer, g) : buffer;
  }
  return multiply_add(splat<F>(-s.lr), direction, p);
}

// Calls body(momentum, first, nesterov) with the constants of an SGD step.
template <class Body>
FLATSTEP_ELEMENT void with_sgd_variant(bool momentum, bool first, bool nesterov, const Body& body) {
  constexpr std::true_type kYes{};
  constexpr std::false_type kNo{};
  if (!momentum) {
    body(kNo, kNo, kNo);
  } else if (first) {
    nesterov ? body(kYes, kYes, kYes) : body(kYes, kYes, kNo);
  } else {
    nesterov ? body(kYes, kNo, kYes) : body(kYes, kNo, kNo);
  }
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
