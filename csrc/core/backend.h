// What a device must be able to do. The public functions check their arguments and hand over; a
// backend computes. cpu/ implements this; cuda/ does, or no_cuda.cpp throws in its place.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/tasks.h"
#include "flatstep/dropout.h"
#include "flatstep/loss.h"
#include "flatstep/optim.h"
#include "flatstep/runtime.h"
#include "flatstep/types.h"

namespace flatstep {

struct TargetTotals {
  std::int64_t n_valid = 0;
  double weight = 0;
};

struct UpdateTask {
  const OptimizerOptions& options;
  const StepOptions& step_options;
  const std::vector<Segment>& segments;
  const std::vector<void*>& grads;
  DType grad_dtype;
  std::int64_t step;       // of this update, from 1
  double grad_multiplier;  // clip_scale / grad_scale
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Runs a body that makes several of the calls below, with the threads standing by in between.
  virtual void together(const std::function<void()>& body) const = 0;

  // See flatstep/loss.h; all but targets and weights is checked.
  virtual TargetTotals check_targets(const IndexArray& targets, std::int64_t classes,
                                     DType weight_dtype,
                                     const CrossEntropyOptions& options) const = 0;
  // With the present number of threads, or with so many.
  virtual std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows,
                                                    int threads = 0) const = 0;
  virtual CrossEntropySums cross_entropy(const CrossEntropyRows& rows, void* workspace) const = 0;

  // Enough for products of at most these sizes.
  virtual std::size_t gemm_workspace_bytes(std::int64_t m, std::int64_t n,
                                           std::int64_t k) const = 0;
  virtual void gemm(const Gemm& call, void* workspace) const = 0;
  // out[j] = sum over rows of x[i, j], or added to out with accumulate.
  virtual void column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                          bool accumulate) const = 0;
  // f32 to bf16 or f16, rounded to nearest even, or back.
  virtual void convert(const ConstMatrix& from, void* to, DType to_dtype,
                       std::int64_t to_row_stride) const = 0;

  // Tensors are cut into the chunks of GradPartials.
  // Fills the partial sums of squares and returns the norm.
  virtual double grad_norm(const std::vector<const void*>& grads, DType dtype,
                           GradPartials& partials) const = 0;
  // The first element whose magnitude is not at most `limit`, as nonfinite_*.
  virtual GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype,
                                const GradPartials& chunks, double limit) const = 0;
  virtual void scale(const std::vector<void*>& grads, DType dtype, const GradPartials& chunks,
                     double factor) const = 0;
  // See flatstep/grad.h; all is checked.
  virtual void accumulate(const std::vector<void*>& totals, const std::vector<const void*>& src,
                          const AccumulateOptions& options, GradPartials& partials) const = 0;
  virtual void update(const UpdateTask& task, const GradPartials& chunks) const = 0;

  virtual void dropout(const float* x, float* out, std::int64_t size, double p,
                       const DropoutKey& key, std::int64_t first) const = 0;
  virtual void dropout_mask(std::uint8_t* out, std::int64_t size, double p, const DropoutKey& key,
                            std::int64_t first) const = 0;
};

namespace cpu {
const Backend& backend();
}

namespace cuda {
// Throws RuntimeFailure with the reason when there is no such backend or device.
const Backend& backend(const Device& device);
void describe(BuildInfo& info);
}  // namespace cuda

// The backend of a device.
const Backend& backend_of(const Device& device);

}  // namespace flatstep
