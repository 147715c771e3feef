// The CPU backend: splits each call into fixed tasks for the kernels of the chosen instruction set.
#include "core/backend.h"

#include "core/tasks.h"
#include "cpu/convert.h"
#include "cpu/cross_entropy.h"
#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/gradient.h"
#include "cpu/isa.h"
#include "cpu/optimizer.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

constexpr std::int64_t kColumnsPerTask = 1024;

class CpuBackend final : public Backend {
 public:
  void together(const std::function<void()>& body) const override { with_team(body); }

  TargetTotals check_targets(const IndexArray& targets, std::int64_t classes, DType weight_dtype,
                             const CrossEntropyOptions& options) const override {
    return cpu::check_targets(targets, classes, weight_dtype, options);
  }

  std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows,
                                            int threads) const override {
    return cpu::cross_entropy_workspace_bytes(rows, threads > 0 ? threads : worker_count());
  }

  CrossEntropySums cross_entropy(const CrossEntropyRows& rows, void* workspace) const override {
    return cpu::cross_entropy(rows, workspace);
  }

  std::size_t gemm_workspace_bytes(std::int64_t m, std::int64_t n, std::int64_t k) const override {
    return gemm_workspace_floats(m, n, k) * sizeof(float);
  }

  void gemm(const Gemm& call, void* workspace) const override {
    cpu::gemm(call, static_cast<float*>(workspace));
  }

  void column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                  bool accumulate) const override {
    parallel_ranges(columns, kColumnsPerTask, [&](std::int64_t begin, std::int64_t end) {
      kernels().column_sum(x + begin, columns, rows, end - begin, out + begin, accumulate);
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

  void update(const UpdateTask& task, const GradPartials& chunks) const override {
    cpu::update(task, chunks);
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

const Backend& backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace flatstep::cpu
