// SGD, Adam and AdamW over flat buffers, global norm and gradient clipping.
//
// With g the gradient (unscaled and clipped), t the step from 1, all scalars from double:
//   AdamW  m = fma(1-b1, g-m, m);  v = fma(1-b2, g*g-v, v);  u = (m/bc1) / (sqrt(v)/bc2s + eps)
//          p = fma(-lr, fma(wd, p, u), p)                     bc1 = 1-b1^t, bc2s = sqrt(1-b2^t)
//          (Loshchilov & Hutter 2019, arXiv:1711.05101, decay outside the moments)
//   Adam   g = fma(wd, p, g), then m, v, u as above; p = fma(-lr, u, p)   (Kingma & Ba 2015)
//   SGD    g = fma(wd, p, g); buf = fma(momentum, buf, (1-dampening)*g), at first buf = g;
//          d = nesterov ? fma(momentum, buf, g) : buf;  p = fma(-lr, d, p)
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flatstep/export.h"
#include "flatstep/layout.h"
#include "flatstep/types.h"

namespace flatstep {

enum class Algorithm { sgd, adam, adamw };

// native: the most exact rounding (above). torch: the rounding of torch.optim's fused CPU kernels.
enum class OptimizerMode { native, torch };

struct OptimizerOptions {
  Algorithm algorithm = Algorithm::adamw;
  OptimizerMode mode = OptimizerMode::native;
  DType dtype = DType::f32;  // of parameters, gradients and state: f32 or f64
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double momentum = 0.0;  // SGD
  double dampening = 0.0;
  bool nesterov = false;
  int max_consecutive_skips = 0;  // 0: never raise; k: the k-th non-finite step in a row raises
};

// One tensor to update. The caller owns the buffers and keeps them alive.
struct Segment {
  void* param = nullptr;
  void* state1 = nullptr;  // exp_avg, or the momentum buffer (null when momentum is 0)
  void* state2 = nullptr;  // exp_avg_sq; null for SGD
  std::int64_t size = 0;   // in elements
  double lr_scale = 1.0;
  std::optional<double> weight_decay;
  std::string name;  // for messages; may be empty
};

struct StepOptions {
  double lr = 1e-3;
  std::optional<double> max_norm;  // clip the global norm to this
  double grad_scale = 1.0;         // the gradients are divided by this first
  bool zero_grad = false;          // write zeros to the gradients in the same visit
};

struct StepResult {
  double grad_norm = 0.0;   // after division by grad_scale, before clipping
  double clip_scale = 1.0;  // min(1, max_norm / (grad_norm + 1e-6)), as PyTorch
  bool skipped = false;     // a gradient was, or became, not finite: nothing was changed
  std::int64_t nonfinite_segment = -1;
  std::int64_t nonfinite_index = -1;  // within that segment
};

struct GradNorm {
  double norm = 0.0;
  std::int64_t nonfinite_segment = -1;
  std::int64_t nonfinite_index = -1;
};

class FLATSTEP_API Optimizer {
 public:
  // Throws InvalidArgument for options out of range, null, misaligned or overlapping buffers.
  Optimizer(const OptimizerOptions& options, std::vector<Segment> segments, Device device = {});
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // grads: one pointer a segment, in the order of the segments. Two visits of memory: the norm,
  // then update (and zeroing). When a gradient is not finite, or not any more once it is scaled,
  // no byte changes, the step count stays, and the result names the first one. Throws
  // InvalidArgument for bad options or buffers, RuntimeFailure when another thread is inside step()
  // or after max_consecutive_skips.
  StepResult step(const std::vector<void*>& grads, const StepOptions& options);

  std::int64_t step_count() const { return step_count_; }
  void set_step_count(std::int64_t count);
  const OptimizerOptions& options() const { return options_; }

 private:
  struct Plan;
  StepResult checked_step(const std::vector<const void*>& inputs, const std::vector<void*>& grads,
                          const StepOptions& step_options);
  StepResult skip(StepResult result, const GradNorm& beyond);

  OptimizerOptions options_;
  std::vector<Segment> segments_;
  Device device_;
  std::unique_ptr<Plan> plan_;
  std::int64_t step_count_ = 0;
  int consecutive_skips_ = 0;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

// Segments of one flat buffer, one a tensor of the layout. State pointers may be null.
FLATSTEP_API std::vector<Segment> segments_of(const Layout& layout, DType dtype, void* params,
                                              void* state1, void* state2);

// The L2 norm over all buffers: squares summed in f64 over fixed chunks of 4096 elements, chunks
// added in order, so the bits do not depend on the thread count. Not finite when an element is not.
FLATSTEP_API GradNorm grad_norm(const std::vector<const void*>& grads,
                                const std::vector<std::int64_t>& sizes, DType dtype,
                                Device device = {});

// Multiplies all gradients by min(1, max_norm / (norm + 1e-6)) and returns the norm before.
// Non-finite gradients are left as they are.
FLATSTEP_API GradNorm clip_grad_norm(const std::vector<void*>& grads,
                                     const std::vector<std::int64_t>& sizes, DType dtype,
                                     double max_norm, Device device = {});

}  // namespace flatstep
