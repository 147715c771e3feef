// What a device must be able to do. The public functions check their arguments and hand over; a
// backend computes. cpu/ implements this; cuda/ does, or no_cuda.cpp throws in its place.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/tasks.h"
#include "flatstep/dropout.h"
#include "flatstep/loss.h"
#include "flatstep/optim.h"
#include "flatstep/runtime.h"
#include "flatstep/types.h"

namespace flatstep {

// What a loss knows of its targets and weights.
struct LossTask {
  const IndexArray& targets;
  std::int64_t classes;
  DType weight_dtype;
  const CrossEntropyOptions& options;
};

// A step after its arguments were checked.
struct StepCall {
  const OptimizerOptions& options;
  const StepOptions& step_options;
  const std::vector<Segment>& segments;
  const std::vector<void*>& grads;
  DType grad_dtype;
};

// What an optimizer keeps on its device from step to step.
class StepEngine {
 public:
  virtual ~StepEngine() = default;
  virtual StepResult step(const StepCall& call) = 0;
  virtual std::int64_t step_count() const = 0;
  virtual void set_step_count(std::int64_t count) = 0;
};

// Calls on one device, in the order of its stream.
class Backend {
 public:
  virtual ~Backend() = default;

  // Runs a body that makes several of the calls below, with the threads standing by in between; for
  // few elements the calling thread does all of it, before others would have come.
  virtual void together(std::int64_t elements, const std::function<void()>& body) const = 0;

  // See flatstep/memory.h.
  virtual void* allocate(std::size_t bytes) const = 0;
  virtual void release(void* data) const = 0;
  virtual void* allocate_status(std::size_t bytes) const = 0;
  virtual void release_status(void* data) const = 0;
  virtual void copy_to_device(void* to, const void* from, std::size_t bytes) const = 0;
  virtual void copy_to_host(void* to, const void* from, std::size_t bytes) const = 0;
  virtual void fill_zero(void* data, std::size_t bytes) const = 0;
  virtual void synchronize() const = 0;
  virtual void synchronize_device() const = 0;
  virtual bool capturing() const = 0;

  // Bytes where the totals are: they come first, with whatever the device keeps beside them.
  virtual std::size_t loss_totals_bytes() const = 0;
  // A loss in three parts; see flatstep/loss.h. All but targets and weights is checked, and the
  // CPU's start_loss throws for those; a CUDA device notes the fault in the totals.
  virtual void start_loss(const LossTask& task, LossTotals* totals) const = 0;
  // Adds the rows' losses to the totals.
  virtual void cross_entropy(const CrossEntropyRows& rows, LossTotals* totals,
                             void* workspace) const = 0;
  // With a status, a CUDA device fills that and nothing is returned.
  virtual CrossEntropyResult finish_loss(const LossTask& task, LossTotals* totals,
                                         CrossEntropyStatus* status) const = 0;
  // With the present number of threads, or with so many.
  virtual std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows,
                                                    int threads = 0) const = 0;

  // Enough for products of at most these sizes.
  virtual std::size_t gemm_workspace_bytes(std::int64_t m, std::int64_t n,
                                           std::int64_t k) const = 0;
  virtual void gemm(const Gemm& call, void* workspace) const = 0;
  // Two products, unless a device has something better.
  virtual void linear_gradients(const LinearGradients& call, void* workspace) const;
  // Enough for at most these sizes, with the present number of threads or with so many.
  virtual std::size_t linear_gradients_workspace_bytes(std::int64_t rows, std::int64_t width,
                                                       std::int64_t classes, int threads = 0) const;
  // Whether products with the logits' gradient have it in the 16-bit type of the other factor, and
  // products may have their result in that type; otherwise that gradient and all results are f32.
  virtual bool half_products() const = 0;
  // Numbers of rows that products like.
  virtual std::int64_t gemm_row_multiple() const = 0;
  // The distance between rows of logits that suits it, in elements: a multiple of this.
  virtual std::int64_t logits_stride_multiple() const { return 1; }
  // out[j] = alpha * sum over rows of x[i, j], or added to out with accumulate; alpha as in Gemm.
  virtual void column_sum(const ConstMatrix& x, float alpha, float* out, bool accumulate) const = 0;
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
  // The norm of partial sums that are on the device.
  virtual double norm_of(const GradPartials& partials) const = 0;

  virtual std::unique_ptr<StepEngine> step_engine(const OptimizerOptions& options,
                                                  const std::vector<Segment>& segments) const = 0;

  virtual void dropout(const float* x, float* out, std::int64_t size, double p,
                       const DropoutKey& key, std::int64_t first) const = 0;
  virtual void dropout_mask(std::uint8_t* out, std::int64_t size, double p, const DropoutKey& key,
                            std::int64_t first) const = 0;
};

using BackendHandle = std::shared_ptr<const Backend>;

namespace cpu {
BackendHandle backend();
}

namespace cuda {
// Throws RuntimeFailure with the reason when there is no such backend or device.
BackendHandle backend(const Device& device);
void describe(BuildInfo& info);
}  // namespace cuda

// The backend of a device.
BackendHandle backend_of(const Device& device);

}  // namespace flatstep
