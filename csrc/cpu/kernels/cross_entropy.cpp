// Rows of cross-entropy and gradient: maximum, then sum of exponentials (kept in the gradient
// buffer), then the gradient while the row is still in cache. The formula is in flatstep/loss.h.
#include <algorithm>
#include <type_traits>

#include "cpu/kernels/math.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Sums run in the accumulation type over this many elements, then in double.
constexpr std::int64_t kBlock = 1024;

template <class T>
using Accumulate = typename Element<T>::Accumulate;

template <class T>
Accumulate<T> row_maximum(const T* x, std::int64_t classes) {
  auto maximum = -std::numeric_limits<Accumulate<T>>::infinity();
#pragma omp simd reduction(max : maximum)
  for (std::int64_t j = 0; j < classes; ++j) {
    const auto value = Element<T>::load(x[j]);
    maximum = value > maximum ? value : maximum;
  }
  return maximum;
}

struct RowSums {
  double rest = 0;    // sum of exp(x - maximum) without one maximum, whose exponential is 1
  double logits = 0;  // sum of x - maximum over the classes that are not masked
  std::int64_t tops = 0;
  std::int64_t allowed = 0;
};

// Sums over one block. The exponentials are kept under Keep; a masked class then holds -1 under
// Smooth, so that the second sweep knows it from one that underflowed.
template <class T, bool Smooth, bool Keep>
void sum_block(const T* x, std::int64_t size, Accumulate<T> maximum, Accumulate<T>* exponentials,
               RowSums& sums) {
  using A = Accumulate<T>;
  A exponential_sum = 0, top_sum = 0, logit_sum = 0, allowed_sum = 0;
#pragma omp simd reduction(+ : exponential_sum, top_sum, logit_sum, allowed_sum)
  for (std::int64_t j = 0; j < size; ++j) {
    const A shifted = Element<T>::load(x[j]) - maximum;
    const A value = exp_nonpositive(shifted);
    // The ones are counted apart: beside them the small terms would lose their digits.
    const bool top = shifted == A(0);
    exponential_sum += top ? A(0) : value;
    top_sum += top ? A(1) : A(0);
    const bool masked = Smooth && shifted == -std::numeric_limits<A>::infinity();
    if (Smooth) {
      logit_sum += masked ? A(0) : shifted;
      allowed_sum += masked ? A(0) : A(1);
    }
    if (Keep) exponentials[j] = masked ? A(-1) : value;
  }
  sums.rest += exponential_sum;
  sums.tops += static_cast<std::int64_t>(top_sum);
  sums.logits += logit_sum;
  sums.allowed += Smooth ? static_cast<std::int64_t>(allowed_sum) : size;
}

template <class T, bool Smooth>
RowSums sum_row(const T* x, std::int64_t classes, Accumulate<T> maximum,
                Accumulate<T>* exponentials) {
  RowSums sums;
  for (std::int64_t begin = 0; begin < classes; begin += kBlock) {
    const std::int64_t size = std::min(kBlock, classes - begin);
    if (exponentials != nullptr) {
      sum_block<T, Smooth, true>(x + begin, size, maximum, exponentials + begin, sums);
    } else {
      sum_block<T, Smooth, false>(x + begin, size, maximum, nullptr, sums);
    }
  }
  sums.rest += static_cast<double>(sums.tops - 1);
  return sums;
}

// grad = exponential * factor - spread, 0 for masked classes.
template <class T, bool Smooth>
void write_gradient(const T* x, T* grad, std::int64_t classes, Accumulate<T> maximum,
                    Accumulate<T> factor, Accumulate<T> spread) {
  using A = Accumulate<T>;
#pragma omp simd
  for (std::int64_t j = 0; j < classes; ++j) {
    if constexpr (std::is_same_v<T, A>) {  // the exponentials are in the gradient buffer
      const A value = grad[j];
      const A result = multiply_add(value, factor, -spread);
      grad[j] = Smooth && value == A(-1) ? A(0) : result;
    } else {
      const A shifted = Element<T>::load(x[j]) - maximum;
      const A result = multiply_add(exp_nonpositive(shifted), factor, -spread);
      const bool masked = Smooth && shifted == -std::numeric_limits<A>::infinity();
      grad[j] = Element<T>::store(masked ? A(0) : result);
    }
  }
}

template <class T, bool Smooth>
double cross_entropy_row(const CrossEntropyRows& rows, std::int64_t row) {
  using A = Accumulate<T>;
  const T* x = static_cast<const T*>(rows.logits) + row * rows.row_stride;
  T* grad = rows.grad ? static_cast<T*>(rows.grad) + row * rows.grad_row_stride : nullptr;
  const std::int64_t classes = rows.classes;
  const std::int64_t target = rows.targets[row];
  if (target < 0) {
    if (grad) std::memset(grad, 0, static_cast<std::size_t>(classes) * sizeof(T));
    if (rows.loss) static_cast<A*>(rows.loss)[row] = 0;
    if (rows.lse) static_cast<A*>(rows.lse)[row] = 0;
    return 0.0;
  }

  const A maximum = row_maximum(x, classes);
  const A target_logit = Element<T>::load(x[target]);  // before grad, which may be x, is written
  A* kept = nullptr;
  if constexpr (std::is_same_v<T, A>) kept = grad;
  const RowSums sums = sum_row<T, Smooth>(x, classes, maximum, kept);

  const double smoothing = Smooth ? rows.label_smoothing : 0.0;
  const double uniform = Smooth ? smoothing / static_cast<double>(sums.allowed) : 0.0;
  const double log_sum = std::log1p(sums.rest);  // of exp(x - maximum)
  const double target_shifted = static_cast<double>(target_logit) - static_cast<double>(maximum);
  double loss = log_sum - target_shifted;
  if (Smooth) {
    const double mean_log_probability = sums.logits / static_cast<double>(sums.allowed) - log_sum;
    loss = (1.0 - smoothing) * loss - smoothing * mean_log_probability;
  }
  if (rows.loss) static_cast<A*>(rows.loss)[row] = static_cast<A>(loss);
  if (rows.lse) static_cast<A*>(rows.lse)[row] = static_cast<A>(maximum + log_sum);

  if (grad) {
    const double upstream =
        rows.grad_scale * (rows.grad_output
                               ? static_cast<double>(static_cast<const A*>(rows.grad_output)[row])
                               : 1.0);
    const double sum = 1.0 + sums.rest;
    write_gradient<T, Smooth>(x, grad, classes, maximum, static_cast<A>(upstream / sum),
                              static_cast<A>(upstream * uniform));
    // p - 1 without cancellation: (e - 1 - rest) / sum, e being the target's exponential.
    const double probability_less_one = (std::expm1(target_shifted) - sums.rest) / sum;
    const double at_target = upstream * (probability_less_one + (smoothing - uniform));
    grad[target] = Element<T>::store(static_cast<A>(at_target));
  }
  return loss;
}

template <class T>
double cross_entropy_rows(const CrossEntropyRows& rows, std::int64_t begin, std::int64_t end) {
  double sum = 0;
  for (std::int64_t row = begin; row < end; ++row) {
    sum += rows.label_smoothing > 0 ? cross_entropy_row<T, true>(rows, row)
                                    : cross_entropy_row<T, false>(rows, row);
  }
  return sum;
}

}  // namespace

void fill_loss_kernels(KernelTable& table) {
  table.cross_entropy_f32 = cross_entropy_rows<float>;
  table.cross_entropy_f64 = cross_entropy_rows<double>;
  table.cross_entropy_bf16 = cross_entropy_rows<bf16_bits>;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
