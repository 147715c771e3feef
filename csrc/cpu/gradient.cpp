// Norm, scaling and accumulation of gradients.
#include "cpu/gradient.h"

#include <cmath>

#include "cpu/chunks.h"
#include "cpu/convert.h"

#define FLATSTEP_ELEMENTS cpu
#include "element/factor.h"

namespace flatstep::cpu {
namespace {

const char* at(const void* base, std::int64_t index, DType dtype) {
  return static_cast<const char*>(base) + index * size_of(dtype);
}
char* at(void* base, std::int64_t index, DType dtype) {
  return static_cast<char*>(base) + index * size_of(dtype);
}

// A chunk as f32, where it is or, from 16 bits, in `buffer`.
const float* as_floats(const void* x, DType dtype, std::int64_t size, float* buffer) {
  if (dtype == DType::f32) return static_cast<const float*>(x);
  widen(x, dtype, size, buffer);
  return buffer;
}

double sum_of_squares(const void* x, DType dtype, std::int64_t size) {
  if (dtype == DType::f64) {
    return kernels().sum_of_squares_f64(static_cast<const double*>(x), size);
  }
  alignas(64) float buffer[kChunk];
  return kernels().sum_of_squares_f32(as_floats(x, dtype, size, buffer), size);
}

// Squares of doubles can leave the range where the norm itself does not: divide by the largest.
double scaled_norm(const std::vector<const void*>& grads, const GradPartials& table) {
  const auto for_each = [&](const auto& visit) {
    for (std::size_t tensor = 0; tensor < grads.size(); ++tensor) {
      const double* grad = static_cast<const double*>(grads[tensor]);
      for (std::int64_t i = 0; i < table.sizes[tensor]; ++i) visit(std::fabs(grad[i]));
    }
  };
  double largest = 0;
  for_each([&](double value) { largest = value <= largest ? largest : value; });
  if (largest == 0 || !std::isfinite(largest)) return largest;
  double sum = 0;
  for_each([&](double value) { sum += (value / largest) * (value / largest); });
  return largest * std::sqrt(sum);
}

}  // namespace

double grad_norm(const std::vector<const void*>& grads, DType dtype, GradPartials& partials) {
  for_each_chunk(partials, Order::forwards,
                 [&](std::size_t i, std::int64_t begin, std::int64_t end, std::int64_t chunk) {
                   partials.sums[static_cast<std::size_t>(chunk)] =
                       sum_of_squares(at(grads[i], begin, dtype), dtype, end - begin);
                 });
  const double norm = partials.norm();
  const bool out_of_range = !(norm > 1e-140 && std::isfinite(norm));
  return dtype == DType::f64 && out_of_range ? scaled_norm(grads, partials) : norm;
}

GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype,
                      const GradPartials& chunks, double limit) {
  GradNorm found;
  alignas(64) float buffer[kChunk];
  for (std::size_t tensor = 0; tensor < grads.size(); ++tensor) {
    for (std::int64_t begin = 0; begin < chunks.sizes[tensor]; begin += kChunk) {
      const std::int64_t size = std::min(kChunk, chunks.sizes[tensor] - begin);
      const char* data = at(grads[tensor], begin, dtype);
      const auto* doubles = reinterpret_cast<const double*>(data);
      const float* floats = dtype == DType::f64 ? nullptr : as_floats(data, dtype, size, buffer);
      for (std::int64_t i = 0; i < size; ++i) {
        const double value = floats != nullptr ? static_cast<double>(floats[i]) : doubles[i];
        if (std::fabs(value) <= limit) continue;
        found.nonfinite_segment = static_cast<std::int64_t>(tensor);
        found.nonfinite_index = begin + i;
        return found;
      }
    }
  }
  return found;
}

void scale(const std::vector<void*>& grads, DType dtype, const GradPartials& chunks,
           double factor) {
  float singles[2];
  double doubles[2];
  split_factor(factor, singles);
  split_factor(factor, doubles);
  for_each_chunk(chunks, Order::backwards,
                 [&](std::size_t i, std::int64_t begin, std::int64_t end, std::int64_t) {
                   char* data = at(grads[i], begin, dtype);
                   const std::int64_t size = end - begin;
                   if (dtype == DType::f64) {
                     kernels().scale_f64(reinterpret_cast<double*>(data), size, doubles);
                   } else if (dtype == DType::f32) {
                     kernels().scale_f32(reinterpret_cast<float*>(data), size, singles);
                   } else {
                     alignas(64) float buffer[kChunk];
                     widen(data, dtype, size, buffer);
                     kernels().scale_f32(buffer, size, singles);
                     narrow(buffer, size, data, dtype);
                   }
                 });
}

void accumulate(const std::vector<void*>& totals, const std::vector<const void*>& src,
                const AccumulateOptions& options, GradPartials& partials) {
  for_each_chunk(partials, Order::forwards,
                 [&](std::size_t i, std::int64_t begin, std::int64_t end, std::int64_t chunk) {
                   char* total = at(totals[i], begin, options.dtype);
                   const char* added = at(src[i], begin, options.src_dtype);
                   double& sum = partials.sums[static_cast<std::size_t>(chunk)];
                   if (options.dtype == DType::f64) {
                     sum = kernels().accumulate_f64(reinterpret_cast<double*>(total),
                                                    reinterpret_cast<const double*>(added),
                                                    end - begin, options.scale, options.overwrite);
                     return;
                   }
                   alignas(64) float buffer[kChunk];
                   sum = kernels().accumulate_f32(
                       reinterpret_cast<float*>(total),
                       as_floats(added, options.src_dtype, end - begin, buffer), end - begin,
                       static_cast<float>(options.scale), options.overwrite);
                 });
}

}  // namespace flatstep::cpu
