#include "core/optim.h"

#include <cmath>

#include "core/backend.h"
#include "core/checks.h"

namespace flatstep {
namespace {

constexpr std::int64_t kLastStep = (std::int64_t{1} << 48) - 1;

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

std::vector<std::int64_t> sizes_of(const std::vector<Segment>& segments) {
  std::vector<std::int64_t> sizes;
  for (const Segment& segment : segments) sizes.push_back(segment.size);
  return sizes;
}

UpdateGroup update_group(const OptimizerOptions& options, const Segment& segment) {
  const Betas betas = segment.betas.value_or(Betas{options.beta1, options.beta2});
  return {segment.lr_scale,  segment.weight_decay.value_or(options.weight_decay),
          betas.beta1,       betas.beta2,
          options.eps,       options.momentum,
          options.dampening, options.nesterov,
          options.maximize};
}

double largest_gradient(const OptimizerOptions& options) {
  const double largest = largest_of(options.dtype);
  const bool squares = options.algorithm != Algorithm::sgd && options.mode == OptimizerMode::native;
  return squares ? std::sqrt(largest) : largest;
}

struct Optimizer::Plan {
  std::unique_ptr<StepEngine> engine;
  std::vector<std::int64_t> sizes;
  std::int64_t elements = 0;  // the sum of the sizes
  Buffers owned;              // parameters and state
  // Of the last step: what was seen before is not checked again.
  std::vector<void*> checked_grads;
  DType checked_dtype = DType::f32;
};

Optimizer::Optimizer(const OptimizerOptions& options, std::vector<Segment> segments, Device device)
    : options_(options),
      segments_(std::move(segments)),
      device_(device),
      plan_(std::make_unique<Plan>()) {
  check_options(options_);
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    check_segment(options_, i, segments_[i], plan_->owned);
  }
  plan_->owned.require_disjoint();
  plan_->sizes = sizes_of(segments_);
  for (const std::int64_t size : plan_->sizes) plan_->elements += size;
  plan_->engine = backend_of(device_)->step_engine(options_, segments_);
}

Optimizer::~Optimizer() = default;

std::int64_t Optimizer::step_count() const { return plan_->engine->step_count(); }

void Optimizer::set_step_count(std::int64_t count) {
  require(count >= 0 && count <= kLastStep, "step_count", count, "a number in [0, 2^48)");
  plan_->engine->set_step_count(count);
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
  const bool on_cpu = device_.type == DeviceType::cpu;
  if (on_cpu) {  // a CUDA device counts by itself, and would have to be waited for
    require(step_count() < kLastStep, "step_count", step_count(), "fewer than 2^48 - 1 steps");
  }
  const DType dtype = step_options.grad_dtype.value_or(options_.dtype);
  if (grads != plan_->checked_grads || dtype != plan_->checked_dtype) {
    check_grads({grads.begin(), grads.end()}, plan_->sizes, dtype, "grads");
    Buffers all = plan_->owned;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      all.add(grads[i], segments_[i].size * size_of(dtype), "grads", i);
    }
    all.require_disjoint();
    plan_->checked_grads = grads;
    plan_->checked_dtype = dtype;
  }
  if (step_options.partials != nullptr) {
    if (step_options.partials->sizes != plan_->sizes) {
      fail("partials", "those of tensors of other sizes", "those of these gradients");
    }
    if (step_options.partials->device.type != device_.type) {
      fail("partials", "those of gradients on another device", "those of these gradients");
    }
  }
  Device device = device_;
  device.stream = step_options.stream.value_or(device.stream);
  StepResult result;
  backend_of(device)->together(plan_->elements, [&] {
    result = plan_->engine->step({options_, step_options, segments_, grads, dtype});
  });
  return checked(result);
}

StepResult Optimizer::result_of(const StepStatus& status) const {
  StepResult result;
  result.grad_norm = status.grad_norm;
  result.clip_scale = status.clip_scale;
  result.skipped = status.skipped != 0;
  result.nonfinite_segment = status.nonfinite_segment;
  result.nonfinite_index = status.nonfinite_index;
  result.consecutive_skips = status.consecutive_skips;
  return checked(result);
}

StepResult Optimizer::checked(StepResult result) const {
  const int most = options_.max_consecutive_skips;
  if (result.skipped && most > 0 && result.consecutive_skips >= most) {
    const auto segment = static_cast<std::size_t>(result.nonfinite_segment);
    const std::string& name = segments_[segment].name;
    throw RuntimeFailure("grads: not finite in " + std::to_string(result.consecutive_skips) +
                         " steps in a row, last in " +
                         (name.empty() ? "tensor " + std::to_string(segment) : name) +
                         " at index " + std::to_string(result.nonfinite_index));
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
