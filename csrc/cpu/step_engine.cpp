// A step on the CPU: the norm, whether the step can be taken, then the update.
#include <cmath>

#include "core/optim.h"
#include "core/step_scale.h"
#include "cpu/gradient.h"
#include "cpu/optimizer.h"

namespace flatstep::cpu {
namespace {

class CpuStepEngine final : public StepEngine {
 public:
  explicit CpuStepEngine(const std::vector<std::int64_t>& sizes) : partials_(sizes) {}

  StepResult step(const StepCall& call) override {
    const OptimizerOptions& options = call.options;
    const StepOptions& step_options = call.step_options;
    const std::vector<const void*> inputs(call.grads.begin(), call.grads.end());
    double norm = step_options.partials != nullptr ? step_options.partials->norm() : 0;
    // Sums that have left the range of doubles say nothing yet about the gradients.
    if (step_options.partials == nullptr || !std::isfinite(norm) || norm < 1e-140) {
      norm = grad_norm(inputs, call.grad_dtype, partials_);
    }
    const StepScale scale =
        step_scale(norm, step_options.grad_scale, step_options.max_norm.value_or(0.0),
                   largest_gradient(options), largest_of(options.dtype));
    StepResult result;
    result.grad_norm = scale.grad_norm;
    result.clip_scale = scale.clip_scale;
    if (scale.look) {
      const GradNorm beyond = first_beyond(inputs, call.grad_dtype, partials_, scale.limit);
      if (beyond.nonfinite_segment >= 0) {
        result.skipped = true;
        result.clip_scale = 1.0;
        result.nonfinite_segment = beyond.nonfinite_segment;
        result.nonfinite_index = beyond.nonfinite_index;
        result.consecutive_skips = ++consecutive_skips_;
        return result;
      }
    }
    consecutive_skips_ = 0;
    update({options, step_options, call.segments, call.grads, call.grad_dtype, step_count_ + 1,
            scale.multiplier},
           partials_);
    ++step_count_;
    return result;
  }

  std::int64_t step_count() const override { return step_count_; }
  void set_step_count(std::int64_t count) override { step_count_ = count; }

 private:
  GradPartials partials_;  // of the last norm
  std::int64_t step_count_ = 0;
  int consecutive_skips_ = 0;
};

}  // namespace

std::unique_ptr<StepEngine> step_engine(const std::vector<Segment>& segments) {
  return std::make_unique<CpuStepEngine>(sizes_of(segments));
}

}  // namespace flatstep::cpu
