// One visit of parameter, gradient and full state. The formulae are in update.h.
#include <type_traits>

#include "cpu/kernels/tables.h"
#include "cpu/kernels/vector.h"
#include "element/update.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class T, bool kDecoupled, Rounding kRounding, bool kAmsgrad>
void update_adam_loop(const UpdateArrays<T>& arrays, std::int64_t size,
                      const UpdateScalars<T>& scalars) {
  // Copies, because the stores below might overwrite what a reference refers to.
  const UpdateScalars<T> s = scalars;
  T* __restrict param = arrays.param;
  const T* __restrict grad = arrays.grad;
  T* __restrict exp_avg = arrays.state1;
  T* __restrict exp_avg_sq = arrays.state2;
  T* __restrict max_exp_avg_sq = arrays.state3;
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    T p = param[i], m = exp_avg[i], v = exp_avg_sq[i];
    update_moments<kDecoupled, kRounding>(scaled_gradient(grad[i], s), p, m, v, s);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    if (kAmsgrad) {
      v = max_exp_avg_sq[i] > v ? max_exp_avg_sq[i] : v;
      max_exp_avg_sq[i] = v;
    }
    param[i] = adam_param<kDecoupled, kRounding>(p, m, v, s);
  }
}

template <class T, bool kDecoupled, Rounding kRounding>
void update_adam(const UpdateArrays<T>& arrays, std::int64_t size, const UpdateScalars<T>& s) {
  if (arrays.state3 == nullptr) {
    update_adam_loop<T, kDecoupled, kRounding, false>(arrays, size, s);
  } else {
    update_adam_loop<T, kDecoupled, kRounding, true>(arrays, size, s);
  }
}

template <class T, bool kTorch>
void update_sgd(const UpdateArrays<T>& arrays, std::int64_t size, const UpdateScalars<T>& scalars) {
  const UpdateScalars<T> s = scalars;
  T* __restrict param = arrays.param;
  const T* __restrict grad = arrays.grad;
  T* __restrict buffer = arrays.state1;
  with_sgd_variant(buffer != nullptr, s.first_step, s.nesterov,
                   [=](auto momentum, auto first, auto nesterov) {
#pragma omp simd
                     for (std::int64_t i = 0; i < size; ++i) {
                       T b = momentum && !first ? buffer[i] : T(0);
                       param[i] = sgd_param<kTorch, momentum, first, nesterov>(
                           param[i], scaled_gradient(grad[i], s), b, s);
                       if (momentum) buffer[i] = b;
                     }
                   });
}

template <class T>
void fill_updates(UpdateFunction<T> (&update)[3][3]) {
  update[0][0] = update[0][2] = update_sgd<T, false>;
  update[0][1] = update_sgd<T, true>;
  update[1][0] = update_adam<T, false, Rounding::native>;
  update[1][1] = update_adam<T, false, Rounding::torch>;
  update[1][2] = update_adam<T, false, Rounding::torch_tail>;
  update[2][0] = update_adam<T, true, Rounding::native>;
  update[2][1] = update_adam<T, true, Rounding::torch>;
  update[2][2] = update_adam<T, true, Rounding::torch_tail>;
}

}  // namespace

void fill_optimizer_kernels(KernelTable& table) {
  fill_updates(table.update_f32);
  fill_updates(table.update_f64);
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
