// One visit of parameter, gradient and state. The formulae are in flatstep/optim.h; the torch
// forms follow, rounding by rounding, the fused CPU kernels of torch.optim.
#include "cpu/kernels/math.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr bool kNative = false;
constexpr bool kTorch = true;

template <class T>
void clear(T* grad, std::int64_t size, const UpdateScalars<T>& scalars) {
  if (scalars.zero_grad) std::memset(grad, 0, static_cast<std::size_t>(size) * sizeof(T));
}

template <class T, bool Decoupled, bool Torch>
void update_adam(T* __restrict param, T* __restrict grad, T* __restrict exp_avg,
                 T* __restrict exp_avg_sq, std::int64_t size, const UpdateScalars<T>& s) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    T p = param[i];
    T g = grad[i] * s.grad_scale[0] * s.grad_scale[1];
    if constexpr (!Decoupled) g = multiply_add(s.weight_decay, p, g);
    if constexpr (Decoupled && Torch) p = p * s.decay_factor;
    const T m = multiply_add(s.one_minus_beta1, g - exp_avg[i], exp_avg[i]);
    T v = exp_avg_sq[i];
    if constexpr (Torch) {
      v = multiply_add(s.one_minus_beta2 * g, g, s.beta2 * v);
    } else {
      v = multiply_add(s.one_minus_beta2, g * g - v, v);
    }
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    const T denominator = std::sqrt(v) / s.bias_correction2_sqrt + s.eps;
    if constexpr (Torch) {
      param[i] = p - (s.step_size * m) / denominator;
    } else {
      const T u = (m / s.bias_correction1) / denominator;
      const T decayed = Decoupled ? multiply_add(s.weight_decay, p, u) : u;
      param[i] = multiply_add(-s.lr, decayed, p);
    }
  }
  clear(grad, size, s);
}

template <class T, bool Torch, bool Momentum, bool First, bool Nesterov>
void update_sgd_loop(T* __restrict param, T* __restrict grad, T* __restrict buffer,
                     std::int64_t size, const UpdateScalars<T>& s) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const T p = param[i];
    const T g = multiply_add(s.weight_decay, p, grad[i] * s.grad_scale[0] * s.grad_scale[1]);
    T direction = g;
    if constexpr (Momentum) {
      T b = g;
      if constexpr (!First && Torch) {
        b = multiply_add(s.one_minus_dampening, g, s.momentum * buffer[i]);
      } else if constexpr (!First) {
        b = multiply_add(s.momentum, buffer[i], s.one_minus_dampening * g);
      }
      buffer[i] = b;
      direction = Nesterov ? multiply_add(s.momentum, b, g) : b;
    }
    param[i] = multiply_add(-s.lr, direction, p);
  }
}

template <class T, bool Torch>
void update_sgd(T* param, T* grad, T* buffer, T*, std::int64_t size, const UpdateScalars<T>& s) {
  const bool momentum = buffer != nullptr;
  const auto run = [&](auto loop) { loop(param, grad, buffer, size, s); };
  if (!momentum) {
    run(update_sgd_loop<T, Torch, false, false, false>);
  } else if (s.first_step) {
    s.nesterov ? run(update_sgd_loop<T, Torch, true, true, true>)
               : run(update_sgd_loop<T, Torch, true, true, false>);
  } else {
    s.nesterov ? run(update_sgd_loop<T, Torch, true, false, true>)
               : run(update_sgd_loop<T, Torch, true, false, false>);
  }
  clear(grad, size, s);
}

template <class T>
void fill_updates(UpdateFunction<T> (&update)[3][2]) {
  update[0][0] = update_sgd<T, kNative>;
  update[0][1] = update_sgd<T, kTorch>;
  update[1][0] = update_adam<T, false, kNative>;
  update[1][1] = update_adam<T, false, kTorch>;
  update[2][0] = update_adam<T, true, kNative>;
  update[2][1] = update_adam<T, true, kTorch>;
}

}  // namespace

void fill_optimizer_kernels(KernelTable& table) {
  fill_updates(table.update_f32);
  fill_updates(table.update_f64);
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
