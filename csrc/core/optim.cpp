#include "core/optim.h"

#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/checks.h"

namespace flatstep {
namespace {

constexpr std::int64_t kLastStep = (std::int64_t{1} << 48) - 1;

std::vector<std::int64_t> sizes_of(const std::vector<Segment>& segments) {
  std::vector<std::int64_t> sizes;
  for (const Segment& segment : segments) sizes.push_back(segment.size);
  return sizes;
}

// Of a gradient that a step can take. Second moments are made of squares: one that overflows would
// be infinite, and from the next step on not a number.
double largest_gradient(const OptimizerOptions& options) {
  const double largest = largest_of(options.dtype);
  const bool squares = options.algorithm != Algorithm::sgd && options.mode == OptimizerMode::native;
  return squares ? std::sqrt(largest) : largest;
}

// Marks the optimizer as busy; a second thread inside step() would race on the state.
class BusyGuard {
 public:
  explicit BusyGuard(std::atomic_flag& busy) : busy_(busy) {
    if (busy_.test_and_set(std::memory_order_acquire)) {
      throw RuntimeFailure("step: this optimizer is already inside step() on another thread");
    }
  }
  ~BusyGuard() { busy_.clear(std::memory_order_release); }

 private:
  std::atomic_flag& busy_;
};

}  // namespace

struct Optimizer::Plan {
  explicit Plan(const std::vector<std::int64_t>& sizes) : partials(sizes) {}

  GradPartials partials;  // of the last norm
  Buffers owned;          // parameters and state
  // Of the last step: what was seen before is not checked again.
  std::vector<void*> checked_grads;
  DType checked_dtype = DType::f32;
};

Optimizer::Optimizer(const OptimizerOptions& options, std::vector<Segment> segments, Device device)
    : options_(options), segments_(std::move(segments)), device_(device) {
  check_options(options_);
  Buffers owned;
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    check_segment(options_, i, segments_[i], owned);
  }
  owned.require_disjoint();
  plan_ = std::make_unique<Plan>(sizes_of(segments_));
  plan_->owned = std::move(owned);
}

Optimizer::~Optimizer() = default;

void Optimizer::set_step_count(std::int64_t count) {
  require(count >= 0 && count <= kLastStep, "step_count", count, "a number in [0, 2^48)");
  step_count_ = count;
}

void Optimizer::set_weight_decay(double weight_decay) {
  OptimizerOptions changed = options_;
  changed.weight_decay = weight_decay;
  check_options(changed);
  options_ = changed;
}

StepResult Optimizer::step(const std::vector<void*>& grads, const StepOptions& step_options) {
  const BusyGuard guard(busy_);
  check_step(step_options, options_);
  require(step_count_ < kLastStep, "step_count", step_count_, "fewer than 2^48 - 1 steps");
  const DType dtype = step_options.grad_dtype.value_or(options_.dtype);
  const std::vector<const void*> inputs(grads.begin(), grads.end());
  if (grads != plan_->checked_grads || dtype != plan_->checked_dtype) {
    check_grads(inputs, plan_->partials.sizes, dtype, "grads");
    Buffers all = plan_->owned;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      all.add(grads[i], segments_[i].size * size_of(dtype), "grads", i);
    }
    all.require_disjoint();
    plan_->checked_grads = grads;
    plan_->checked_dtype = dtype;
  }
  if (step_options.partials != nullptr && step_options.partials->sizes != plan_->partials.sizes) {
    fail("partials", "those of tensors of other sizes", "those of these gradients");
  }

  StepResult result;
  backend_of(device_).together([&] { result = checked_step(inputs, grads, dtype, step_options); });
  return result;
}

StepResult Optimizer::checked_step(const std::vector<const void*>& inputs,
                                   const std::vector<void*>& grads, DType grad_dtype,
                                   const StepOptions& step_options) {
  const Backend& device = backend_of(device_);
  double norm = step_options.partials != nullptr ? step_options.partials->norm() : 0;
  // Sums that have left the range of doubles say nothing yet about the gradients.
  if (step_options.partials == nullptr || !std::isfinite(norm) || norm < 1e-140) {
    norm = device.grad_norm(inputs, grad_dtype, plan_->partials);
  }
  StepResult result;
  result.grad_norm = norm / step_options.grad_scale;
  if (step_options.max_norm) {
    result.clip_scale = clip_scale(result.grad_norm, *step_options.max_norm);
  }
  const double multiplier = result.clip_scale / step_options.grad_scale;
  // An element beyond the type's range, or one that scaling would take there.
  const double largest = largest_gradient(options_);
  if (!(result.grad_norm * result.clip_scale <= largest)) {
    const double limit = std::min(largest_of(options_.dtype), largest / multiplier);
    const GradNorm beyond = device.first_beyond(inputs, grad_dtype, plan_->partials, limit);
    if (beyond.nonfinite_segment >= 0) return skip(result, beyond);
  }
  consecutive_skips_ = 0;
  device.update({options_, step_options, segments_, grads, grad_dtype, step_count_ + 1, multiplier},
                plan_->partials);
  ++step_count_;
  return result;
}

StepResult Optimizer::skip(StepResult result, const GradNorm& beyond) {
  result.skipped = true;
  result.clip_scale = 1.0;
  result.nonfinite_segment = beyond.nonfinite_segment;
  result.nonfinite_index = beyond.nonfinite_index;
  ++consecutive_skips_;
  if (options_.max_consecutive_skips > 0 && consecutive_skips_ >= options_.max_consecutive_skips) {
    const std::string& name = segments_[static_cast<std::size_t>(beyond.nonfinite_segment)].name;
    throw RuntimeFailure(
        "grads: not finite in " + std::to_string(consecutive_skips_) + " steps in a row, last in " +
        (name.empty() ? "tensor " + std::to_string(beyond.nonfinite_segment) : name) +
        " at index " + std::to_string(beyond.nonfinite_index));
  }
  return result;
}

std::vector<Segment> segments_of(const Layout& layout, DType dtype, void* params, void* state1,
                                 void* state2) {
  const auto at = [](void* base, std::int64_t offset, DType type) -> void* {
    return base == nullptr ? nullptr : static_cast<char*>(base) + offset * size_of(type);
  };
  const DType state = dtype == DType::f64 ? DType::f64 : DType::f32;
  std::vector<Segment> segments;
  for (const LayoutEntry& entry : layout.entries()) {
    Segment segment;
    segment.param = at(params, entry.offset, dtype);
    segment.state1 = at(state1, entry.offset, state);
    segment.state2 = at(state2, entry.offset, state);
    segment.size = entry.size;
    segment.lr_scale = entry.lr_scale;
    segment.weight_decay = entry.weight_decay;
    segment.betas = entry.betas;
    segment.name = entry.name;
    segments.push_back(segment);
  }
  return segments;
}

}  // namespace flatstep
