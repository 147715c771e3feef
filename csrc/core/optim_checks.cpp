#include <algorithm>
#include <limits>

#include "core/checks.h"
#include "core/optim.h"

namespace flatstep {
namespace {

// Finite also in the type of the arithmetic.
bool finite_and_not_negative(double value, DType dtype) {
  return value >= 0 && value <= largest_of(dtype);
}

void require_combination(bool holds, const char* argument, const std::string& got,
                         const char* expected) {
  if (!holds) fail(argument, got, expected);
}

}  // namespace

void Buffers::add(const void* data, std::int64_t bytes, const char* name, std::size_t index) {
  if (bytes == 0 || data == nullptr) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  intervals_.push_back({begin, begin + static_cast<std::uintptr_t>(bytes), name, index});
}

void Buffers::require_disjoint() {
  std::sort(intervals_.begin(), intervals_.end(),
            [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < intervals_.size(); ++i) {
    const Interval& before = intervals_[i - 1];
    const Interval& after = intervals_[i];
    if (after.begin < before.end) {
      fail(numbered(after.name, after.index),
           "memory that overlaps " + numbered(before.name, before.index), "memory of its own");
    }
  }
}

std::string numbered(const char* name, std::size_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

void check_betas(const Betas& betas) {
  require(betas.beta1 >= 0 && betas.beta1 < 1, "betas", betas.beta1, "beta1 in [0, 1)");
  require(betas.beta2 >= 0 && betas.beta2 < 1, "betas", betas.beta2, "beta2 in [0, 1)");
}

void check_options(const OptimizerOptions& o) {
  if (o.dtype != DType::f32 && o.dtype != DType::f64 && o.dtype != DType::bf16) {
    fail("params", name_of(o.dtype), "float32, float64 or bfloat16");
  }
  check_betas({o.beta1, o.beta2});
  require(finite_and_not_negative(o.eps, o.dtype), "eps", o.eps, "a finite number >= 0");
  require(finite_and_not_negative(o.weight_decay, o.dtype), "weight_decay", o.weight_decay,
          "a finite number >= 0");
  require(o.momentum >= 0 && o.momentum < 1, "momentum", o.momentum, "a number in [0, 1)");
  require(std::isfinite(o.dampening), "dampening", o.dampening, "a finite number");
  if (o.nesterov && (o.momentum <= 0 || o.dampening != 0)) {
    fail("nesterov", "true", "false, unless momentum > 0 and dampening = 0");
  }
  require(o.max_consecutive_skips >= 0, "max_consecutive_skips",
          std::int64_t{o.max_consecutive_skips}, "a number >= 0");
  const bool low_bit = o.state == StateFormat::block8;
  require_combination(!(o.amsgrad && low_bit), "amsgrad", "true with 8-bit state",
                      "full state: the largest of numbers that are rounded up at times only grows");
  require_combination(!(o.amsgrad && o.algorithm == Algorithm::sgd), "amsgrad", "true for SGD",
                      "false");
  require_combination(!(low_bit && o.dtype == DType::f64), "state", "8 bits for float64 params",
                      "full state");
  require_combination(!(o.mode == OptimizerMode::torch && (low_bit || o.dtype == DType::bf16)),
                      "mode", "'torch' with 8-bit state or stochastic rounding", "'native'");
}

void check_step(const StepOptions& o, const OptimizerOptions& options) {
  require(finite_and_not_negative(o.lr, options.dtype), "lr", o.lr, "a finite number >= 0");
  if (o.max_norm) {
    require(std::isfinite(*o.max_norm) && *o.max_norm > 0, "max_norm", *o.max_norm,
            "a finite number > 0");
  }
  require(std::isfinite(o.grad_scale) && o.grad_scale > 0, "grad_scale", o.grad_scale,
          "a finite number > 0");
  const DType dtype = o.grad_dtype.value_or(options.dtype);
  const bool like_params = options.dtype == DType::f64 || options.mode == OptimizerMode::torch;
  if (like_params && dtype != options.dtype) {
    fail("grads", name_of(dtype), std::string(name_of(options.dtype)) + ", like params");
  }
  if (!is_floating(dtype) || (dtype == DType::f64) != (options.dtype == DType::f64)) {
    fail("grads", name_of(dtype), "float32, bfloat16 or float16");
  }
}

void check_segment(const OptimizerOptions& options, std::size_t index, Segment& segment,
                   Buffers& owned) {
  const bool sgd = options.algorithm == Algorithm::sgd;
  const bool low_bit = options.state == StateFormat::block8;
  require(segment.size >= 0, "params", segment.size, "a size >= 0");
  require(finite_and_not_negative(segment.lr_scale, options.dtype), "lr_scale", segment.lr_scale,
          "a finite number >= 0");
  if (segment.weight_decay) {
    require(finite_and_not_negative(*segment.weight_decay, options.dtype), "weight_decay",
            *segment.weight_decay, "a finite number >= 0");
  }
  if (segment.betas) check_betas(*segment.betas);

  const auto take = [&](const void* data, std::int64_t size, DType dtype, const char* name) {
    require_buffer(data, size, dtype, name, index);
    owned.add(data, size * size_of(dtype), name, index);
  };
  take(segment.param, segment.size, options.dtype, "params");
  const DType state = options.dtype == DType::f64 ? DType::f64 : DType::f32;
  const std::int64_t blocks = (segment.size + kStateBlock - 1) / kStateBlock;
  const auto take_state = [&](bool used, void*& data, void** scale, const char* name,
                              const char* scale_name) {
    if (!used) {
      data = nullptr;
      if (scale != nullptr) *scale = nullptr;
    } else if (low_bit) {
      take(data, segment.size, DType::u8, name);
      take(*scale, blocks, DType::u16, scale_name);
    } else {
      take(data, segment.size, state, name);
    }
  };
  take_state(!sgd || options.momentum > 0, segment.state1, &segment.scale1, "state1", "scale1");
  take_state(!sgd, segment.state2, &segment.scale2, "state2", "scale2");
  take_state(options.amsgrad, segment.state3, nullptr, "state3", "");
  if (segment.bf16_copy != nullptr) {
    require_combination(options.dtype == DType::f32, "bf16_copy",
                        std::string("one of ") + name_of(options.dtype) + " params",
                        "float32 params");
    take(segment.bf16_copy, segment.size, DType::bf16, "bf16_copy");
  }
}

void check_grads(const std::vector<const void*>& grads, const std::vector<std::int64_t>& sizes,
                 DType dtype, const char* name) {
  if (!is_floating(dtype)) fail(name, name_of(dtype), "float32, float64, bfloat16 or float16");
  if (grads.size() != sizes.size()) {
    fail(name, std::to_string(grads.size()) + " buffers",
         std::to_string(sizes.size()) + ", one for each size");
  }
  for (std::size_t i = 0; i < grads.size(); ++i) {
    require(sizes[i] >= 0, name, sizes[i], "a size >= 0");
    require_buffer(grads[i], sizes[i], dtype, name, i);
  }
}

double largest_of(DType dtype) {
  return dtype == DType::f64 ? std::numeric_limits<double>::max()
                             : static_cast<double>(std::numeric_limits<float>::max());
}

}  // namespace flatstep
