// The CPU backend: splits each call into fixed tasks for the kernels of the chosen instruction set.
#include "core/backend.h"

#include <cstring>

#include "core/loss_totals.h"
#include "core/tasks.h"
#include "cpu/convert.h"
#include "cpu/cross_entropy.h"
#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/gradient.h"
#include "cpu/isa.h"
#include "cpu/linear_gradients.h"
#include "cpu/memory.h"
#include "cpu/optimizer.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

constexpr std::int64_t kColumnsPerTask = 1024;
constexpr std::int64_t kOneThread = 32768;  // fewer elements take less time than a second thread

class CpuBackend final : public Backend {
 public:
  void together(std::int64_t elements, const std::function<void()>& body) const override {
    elements < kOneThread ? alone(body) : with_team(body);
  }

  void* allocate(std::size_t bytes) const override { return cpu::allocate(bytes); }
  void release(void* data) const override { cpu::release(data); }
  void* allocate_status(std::size_t bytes) const override { return allocate(bytes); }
  void release_status(void* data) const override { release(data); }
  void copy_to_device(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  void copy_to_host(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  void fill_zero(void* data, std::size_t bytes) const override { std::memset(data, 0, bytes); }
  void synchronize() const override {}
  void synchronize_device() const override {}
  bool capturing() const override { return false; }

  std::size_t loss_totals_bytes() const override { return sizeof(LossTotals); }
  void start_loss(const LossTask& task, LossTotals* totals) const override {
    cpu::start_loss(task, totals);
  }
  void cross_entropy(const CrossEntropyRows& rows, LossTotals* totals,
                     void* workspace) const override {
    cpu::cross_entropy(rows, totals, workspace);
  }
  CrossEntropyResult finish_loss(const LossTask& task, LossTotals* totals,
                                 CrossEntropyStatus*) const override {
    return result_of(reduction_of(task.options), *totals);
  }
  std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows,
                                            int threads) const override {
    return cpu::cross_entropy_workspace_bytes(rows, threads > 0 ? threads : worker_count());
  }

  std::size_t gemm_workspace_bytes(std::int64_t m, std::int64_t n, std::int64_t k) const override {
    return gemm_workspace_floats(m, n, k) * sizeof(float);
  }

  void gemm(const Gemm& call, void* workspace) const override {
    cpu::gemm(call, static_cast<float*>(workspace));
  }

  void linear_gradients(const LinearGradients& call, void* workspace) const override {
    if (!cpu::linear_gradients(call, workspace)) Backend::linear_gradients(call, workspace);
  }
  std::size_t linear_gradients_workspace_bytes(std::int64_t rows, std::int64_t width,
                                               std::int64_t classes, int threads) const override {
    const std::size_t bytes = cpu::linear_gradients_workspace_bytes(
        rows, width, classes, threads > 0 ? threads : worker_count());
    return bytes > 0 ? bytes
                     : Backend::linear_gradients_workspace_bytes(rows, width, classes, threads);
  }

  bool half_products() const override { return false; }
  std::int64_t gemm_row_multiple() const override { return 12; }
  // Rows begin with a line of the cache.
  std::int64_t logits_stride_multiple() const override { return 16; }

  void column_sum(const ConstMatrix& x, float, float* out, bool accumulate) const override {
    const auto* data = static_cast<const float*>(x.data);
    parallel_ranges(x.cols, kColumnsPerTask, [&](std::int64_t begin, std::int64_t end) {
      kernels().column_sum(data + begin, x.row_stride, x.rows, end - begin, out + begin,
                           accumulate);
    });
  }

  void convert(const ConstMatrix& from, void* to, DType to_dtype,
               std::int64_t to_row_stride) const override {
    parallel_for(from.rows, [&](std::int64_t row, int) {
      const char* source =
          static_cast<const char*>(from.data) + row * from.row_stride * size_of(from.dtype);
      char* target = static_cast<char*>(to) + row * to_row_stride * size_of(to_dtype);
      if (from.dtype == DType::f32) {
        narrow(reinterpret_cast<const float*>(source), from.cols, target, to_dtype);
      } else {
        widen(source, from.dtype, from.cols, reinterpret_cast<float*>(target));
      }
    });
  }

  double grad_norm(const std::vector<const void*>& grads, DType dtype,
                   GradPartials& partials) const override {
    return cpu::grad_norm(grads, dtype, partials);
  }

  GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype,
                        const GradPartials& chunks, double limit) const override {
    return cpu::first_beyond(grads, dtype, chunks, limit);
  }

  void scale(const std::vector<void*>& grads, DType dtype, const GradPartials& chunks,
             double factor) const override {
    cpu::scale(grads, dtype, chunks, factor);
  }

  void accumulate(const std::vector<void*>& totals, const std::vector<const void*>& src,
                  const AccumulateOptions& options, GradPartials& partials) const override {
    cpu::accumulate(totals, src, options, partials);
  }

  double norm_of(const GradPartials& partials) const override { return partials.norm(); }

  std::unique_ptr<StepEngine> step_engine(const OptimizerOptions&,
                                          const std::vector<Segment>& segments) const override {
    return cpu::step_engine(segments);
  }

  void dropout(const float* x, float* out, std::int64_t size, double p, const DropoutKey& key,
               std::int64_t first) const override {
    const DropoutTask task = dropout_task(p, key);
    for_each_multiplier(task, first, size, [=](std::int64_t i, float multiplier) {
      out[i] = multiplier == 0 ? 0.0f : x[i] * multiplier;
    });
  }

  void dropout_mask(std::uint8_t* out, std::int64_t size, double p, const DropoutKey& key,
                    std::int64_t first) const override {
    const DropoutTask task = dropout_task(p, key);
    for_each_multiplier(task, first, size, [=](std::int64_t i, float multiplier) {
      out[i] = multiplier == 0 ? 0 : 1;
    });
  }
};

}  // namespace

BackendHandle backend() {
  static const CpuBackend instance;
  return BackendHandle(BackendHandle(), &instance);  // owns nothing
}

}  // namespace flatstep::cpu
