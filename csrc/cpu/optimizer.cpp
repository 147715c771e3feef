#include "cpu/optimizer.h"

#include <algorithm>
#include <cmath>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

constexpr std::int64_t kChunk = ChunkTable::kChunk;
constexpr std::int64_t kChunksPerTask = 8;

// visit(segment, begin, end, chunk) for every chunk, on all threads.
template <class Visit>
void for_each_chunk(const ChunkTable& table, const Visit& visit) {
  parallel_ranges(table.chunks(), kChunksPerTask, [&](std::int64_t first, std::int64_t last) {
    const auto& starts = table.first_chunk;
    std::size_t segment = static_cast<std::size_t>(
        std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1);
    for (std::int64_t chunk = first; chunk < last; ++chunk) {
      while (chunk >= starts[segment + 1]) ++segment;
      const std::int64_t begin = (chunk - starts[segment]) * kChunk;
      visit(segment, begin, std::min(begin + kChunk, table.sizes[segment]), chunk);
    }
  });
}

template <class T>
GradNorm find_beyond(const std::vector<const void*>& grads, const ChunkTable& table, double limit) {
  GradNorm found;
  for (std::size_t segment = 0; segment < grads.size(); ++segment) {
    const T* grad = static_cast<const T*>(grads[segment]);
    for (std::int64_t i = 0; i < table.sizes[segment]; ++i) {
      if (!(std::fabs(static_cast<double>(grad[i])) <= limit)) {
        found.nonfinite_segment = static_cast<std::int64_t>(segment);
        found.nonfinite_index = i;
        return found;
      }
    }
  }
  return found;
}

// A factor as two of the type, so that neither is subnormal: it may be too small for one float
// though the products are not.
template <class T>
void split_factor(double factor, T (&parts)[2]) {
  constexpr double kPower = 0x1p64;
  parts[0] = T(1);
  if (factor < 1 / kPower) parts[0] = static_cast<T>(1 / kPower);
  if (factor > kPower) parts[0] = static_cast<T>(kPower);
  parts[1] = static_cast<T>(factor / static_cast<double>(parts[0]));
}

// Squares of doubles can leave the range where the norm itself does not: divide by the largest.
double scaled_norm(const std::vector<const void*>& grads, const ChunkTable& table) {
  const auto for_each = [&](const auto& visit) {
    for (std::size_t segment = 0; segment < grads.size(); ++segment) {
      const double* grad = static_cast<const double*>(grads[segment]);
      for (std::int64_t i = 0; i < table.sizes[segment]; ++i) visit(std::fabs(grad[i]));
    }
  };
  double largest = 0;
  for_each([&](double value) { largest = value <= largest ? largest : value; });
  if (largest == 0 || !std::isfinite(largest)) return largest;
  double sum = 0;
  for_each([&](double value) { sum += (value / largest) * (value / largest); });
  return largest * std::sqrt(sum);
}

template <class T>
GradNorm norm_of(const std::vector<const void*>& grads, ChunkTable& table,
                 double (*sum_of_squares)(const T*, std::int64_t)) {
  for_each_chunk(
      table, [&](std::size_t segment, std::int64_t begin, std::int64_t end, std::int64_t chunk) {
        table.partials[static_cast<std::size_t>(chunk)] =
            sum_of_squares(static_cast<const T*>(grads[segment]) + begin, end - begin);
      });
  double sum = 0;
  for (const double partial : table.partials) sum += partial;
  GradNorm norm;
  norm.norm = std::sqrt(sum);
  const bool out_of_range = !(sum > 1e-280 && std::isfinite(sum));
  if (std::is_same_v<T, double> && out_of_range) norm.norm = scaled_norm(grads, table);
  return norm;
}

template <class T>
UpdateScalars<T> scalars_of(const UpdateTask& task, const Segment& segment) {
  const OptimizerOptions& options = task.options;
  const double t = static_cast<double>(task.step);
  const double lr = task.step_options.lr * segment.lr_scale;
  const double weight_decay = segment.weight_decay.value_or(options.weight_decay);
  const double bias_correction1 = 1.0 - std::pow(options.beta1, t);
  UpdateScalars<T> s{};
  s.lr = static_cast<T>(lr);
  s.weight_decay = static_cast<T>(weight_decay);
  split_factor(task.grad_multiplier, s.grad_scale);
  s.one_minus_beta1 = static_cast<T>(1.0 - options.beta1);
  s.one_minus_beta2 = static_cast<T>(1.0 - options.beta2);
  s.beta2 = static_cast<T>(options.beta2);
  s.bias_correction1 = static_cast<T>(bias_correction1);
  s.bias_correction2_sqrt = static_cast<T>(std::sqrt(1.0 - std::pow(options.beta2, t)));
  s.eps = static_cast<T>(options.eps);
  s.step_size = static_cast<T>(lr / bias_correction1);
  s.decay_factor = static_cast<T>(1.0 - lr * weight_decay);
  s.momentum = static_cast<T>(options.momentum);
  s.one_minus_dampening = static_cast<T>(1.0 - options.dampening);
  s.nesterov = options.nesterov;
  s.first_step = task.step == 1;
  s.zero_grad = task.step_options.zero_grad;
  return s;
}

template <class T>
void update_all(const UpdateTask& task, const ChunkTable& table,
                const UpdateFunction<T> (&functions)[3][2]) {
  const UpdateFunction<T> function =
      functions[static_cast<int>(task.options.algorithm)][static_cast<int>(task.options.mode)];
  std::vector<UpdateScalars<T>> scalars;
  for (const Segment& segment : task.segments) scalars.push_back(scalars_of<T>(task, segment));
  const auto at = [](void* base, std::int64_t offset) {
    return base == nullptr ? nullptr : static_cast<T*>(base) + offset;
  };
  for_each_chunk(table, [&](std::size_t i, std::int64_t begin, std::int64_t end, std::int64_t) {
    const Segment& segment = task.segments[i];
    function(at(segment.param, begin), at(task.grads[i], begin), at(segment.state1, begin),
             at(segment.state2, begin), end - begin, scalars[i]);
  });
}

}  // namespace

GradNorm grad_norm(const std::vector<const void*>& grads, DType dtype, ChunkTable& chunks) {
  return dtype == DType::f64 ? norm_of<double>(grads, chunks, kernels().sum_of_squares_f64)
                             : norm_of<float>(grads, chunks, kernels().sum_of_squares_f32);
}

GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype, const ChunkTable& chunks,
                      double limit) {
  return dtype == DType::f64 ? find_beyond<double>(grads, chunks, limit)
                             : find_beyond<float>(grads, chunks, limit);
}

void scale(const std::vector<void*>& grads, DType dtype, const ChunkTable& chunks, double factor) {
  float singles[2];
  double doubles[2];
  split_factor(factor, singles);
  split_factor(factor, doubles);
  for_each_chunk(chunks, [&](std::size_t i, std::int64_t begin, std::int64_t end, std::int64_t) {
    if (dtype == DType::f64) {
      kernels().scale_f64(static_cast<double*>(grads[i]) + begin, end - begin, doubles);
    } else {
      kernels().scale_f32(static_cast<float*>(grads[i]) + begin, end - begin, singles);
    }
  });
}

void update(const UpdateTask& task, const ChunkTable& chunks) {
  if (task.options.dtype == DType::f64) {
    update_all<double>(task, chunks, kernels().update_f64);
  } else {
    update_all<float>(task, chunks, kernels().update_f32);
  }
}

}  // namespace flatstep::cpu
