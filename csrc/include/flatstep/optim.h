// SGD, Adam and AdamW over flat buffers or lists of tensors.
//
// With g the gradient (divided by grad_scale, clipped, negated with maximize), t the step from 1,
// all scalars from double:
//   AdamW  m = fma(1-b1, g-m, m);  v = fma(1-b2, g*g-v, v);  u = (m/bc1) / (sqrt(v)/bc2s + eps)
//          p = fma(-lr, fma(wd, p, u), p)                     bc1 = 1-b1^t, bc2s = sqrt(1-b2^t)
//          (Loshchilov & Hutter 2019, arXiv:1711.05101, decay outside the moments)
//   Adam   g = fma(wd, p, g), then m, v, u as above; p = fma(-lr, u, p)   (Kingma & Ba 2015)
//   SGD    g = fma(wd, p, g); buf = fma(momentum, buf, (1-dampening)*g), at first buf = g;
//          d = nesterov ? fma(momentum, buf, g) : buf;  p = fma(-lr, d, p)
//   amsgrad: the largest v so far stands in the denominator (Reddi et al. 2018, arXiv:1904.09237)
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flatstep/export.h"
#include "flatstep/grad.h"
#include "flatstep/layout.h"
#include "flatstep/types.h"

namespace flatstep {

enum class Algorithm { sgd, adam, adamw };

// native: the most exact rounding (above). torch: every rounding of torch.optim's fused CPU
// kernels, for f32 and f64 parameters with gradients of their type and full state.
enum class OptimizerMode { native, torch };

// Of the moments. full: numbers of the type of the arithmetic. block8: one byte each. In a block of
// 128 elements a byte counts steps of an eighth of a power of two below the block's largest number
// (first moment: sign, 7 bits, 16 octaves; second: 8 bits, 32 octaves, and never 0 for v > 0, which
// would make the update huge). They are rounded stochastically, because with b2 near 1 a step
// changes v by less than it could be rounded by: rounded to nearest, it would stand still.
enum class StateFormat { full, block8 };

struct OptimizerOptions {
  Algorithm algorithm = Algorithm::adamw;
  OptimizerMode mode = OptimizerMode::native;
  // Of the parameters: f32, bf16, or on the CPU f64. Arithmetic is f64 for f64, else f32. bf16
  // parameters are rounded stochastically: small updates move them in the mean. (For bf16
  // parameters with an f32 master, give the master as the parameters and the bf16 ones as their
  // copy.)
  DType dtype = DType::f32;
  StateFormat state = StateFormat::full;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double momentum = 0.0;  // SGD
  double dampening = 0.0;
  bool nesterov = false;
  bool amsgrad = false;  // Adam and AdamW, with full state
  bool maximize = false;
  std::uint64_t seed = 0;         // of stochastic rounding: see core/rounding.h
  int max_consecutive_skips = 0;  // 0: never raise; k: the k-th non-finite step in a row raises
};

// Elements that share a scale in StateFormat::block8.
constexpr std::int64_t kStateBlock = 128;

// One tensor to update. The caller owns the buffers and keeps them alive. Moments begin as zeros,
// in either format.
struct Segment {
  void* param = nullptr;
  void* state1 = nullptr;  // exp_avg, or the momentum buffer (null when momentum is 0)
  void* state2 = nullptr;  // exp_avg_sq; null for SGD
  std::int64_t size = 0;   // in elements
  double lr_scale = 1.0;
  std::optional<double> weight_decay;  // instead of the optimizer's
  std::string name;                    // for messages; may be empty
  std::optional<Betas> betas;          // instead of the optimizer's
  void* state3 = nullptr;              // max_exp_avg_sq with amsgrad
  // StateFormat::block8: uint16 [ceil(size / kStateBlock)] beside the bytes of state1 and state2.
  void* scale1 = nullptr;
  void* scale2 = nullptr;
  // bf16 copy of f32 parameters, rounded to nearest, that the step keeps up to date; or null.
  void* bf16_copy = nullptr;
};

// What a step on a CUDA device leaves behind, in the order of its stream.
struct StepStatus {
  double grad_norm = 0.0, clip_scale = 1.0, lr = 0.0;
  std::int64_t nonfinite_segment = -1, nonfinite_index = -1;
  std::int64_t step_count = 0;  // after the step
  std::int32_t skipped = 0, consecutive_skips = 0;
};

struct StepOptions {
  double lr = 1e-3;
  std::optional<double> max_norm;  // clip the global norm to this
  double grad_scale = 1.0;         // the gradients are divided by this first
  bool zero_grad = false;          // write zeros to the gradients in the same visit
  // f32, bf16 or f16 for f32 and bf16 parameters, f64 for f64; without a value, the parameters'.
  std::optional<DType> grad_dtype;
  // Of these very gradients, from the one who wrote them last: saves the visit for the norm.
  const GradPartials* partials = nullptr;
  // On a CUDA device. The stream of this step, if not that of the optimizer's device; a learning
  // rate in the device's memory, which a captured graph reads anew, instead of lr; and where to put
  // the result: memory that the device can write (its own, or pinned). With a status the call
  // returns at once and can be captured; without one it waits for the result.
  std::optional<std::uintptr_t> stream;
  const double* device_lr = nullptr;
  StepStatus* status = nullptr;
};

struct StepResult {
  double grad_norm = 0.0;   // after division by grad_scale, before clipping
  double clip_scale = 1.0;  // min(1, max_norm / (grad_norm + 1e-6)), as PyTorch
  bool skipped = false;     // a gradient was, or became, too large: nothing was changed
  std::int64_t nonfinite_segment = -1;
  std::int64_t nonfinite_index = -1;  // within that segment
  int consecutive_skips = 0;          // this one included
};

class FLATSTEP_API Optimizer {
 public:
  // Throws InvalidArgument for options out of range, null, misaligned or overlapping buffers.
  Optimizer(const OptimizerOptions& options, std::vector<Segment> segments, Device device = {});
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // grads: one pointer a segment, in the order of the segments. Two visits of memory: the norm,
  // then update (and zeroing); one with partials. When a gradient is not finite, or not any more
  // once it is scaled (and, for Adam in native mode, squared), no byte changes, the step count
  // stays, and the result names the first one.
  // Throws InvalidArgument for bad options or buffers, RuntimeFailure when another thread is inside
  // step() or after max_consecutive_skips.
  StepResult step(const std::vector<void*>& grads, const StepOptions& options);
  // Of a step with a status, once the stream has come that far; throws as step() does.
  StepResult result_of(const StepStatus& status) const;

  // On a CUDA device these wait for the steps before.
  std::int64_t step_count() const;
  void set_step_count(std::int64_t count);
  // Of the segments that have none of their own, from the next step on.
  void set_weight_decay(double weight_decay);
  const OptimizerOptions& options() const { return options_; }

 private:
  struct Plan;
  StepResult checked(StepResult result) const;

  OptimizerOptions options_;
  std::vector<Segment> segments_;
  Device device_;
  std::unique_ptr<Plan> plan_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

// Segments of one flat buffer, one a tensor of the layout. State pointers may be null.
FLATSTEP_API std::vector<Segment> segments_of(const Layout& layout, DType dtype, void* params,
                                              void* state1, void* state2);

}  // namespace flatstep
