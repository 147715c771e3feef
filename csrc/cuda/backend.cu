// The CUDA backend: every call is queued on the stream of its device.
#include "core/backend.h"

#include <climits>

#include "core/arena.h"
#include "core/checks.h"
#include "core/dropout_task.h"
#include "cuda/blas.h"
#include "cuda/cross_entropy.h"
#include "cuda/devices.h"
#include "cuda/elementwise.h"
#include "cuda/gradient.h"
#include "cuda/launch.h"
#include "cuda/step_engine.h"

namespace flatstep::cuda {
namespace {

// What a loss keeps in the workspace: the totals, and what belongs to them.
struct LossMemory {
  LossTotals totals;
  TargetPart parts[kTargetParts];
  alignas(8) unsigned char status[sizeof(CrossEntropyStatus)];  // for a caller that waits
};

LossMemory& memory_of(LossTotals* totals) { return *reinterpret_cast<LossMemory*>(totals); }

// What the kernels of rows keep in the workspace.
struct RowMemories {
  RowRecord* records;
  RowsPart* parts;
  std::size_t bytes;

  RowMemories(std::int64_t rows, void* base) {
    Arena arena(base);
    records = arena.take<RowRecord>(rows);
    parts = arena.take<RowsPart>(row_parts(rows));
    bytes = arena.used();
  }
};

void require_supported(const CrossEntropyRows& rows) {
  if (rows.dtype == DType::f64) {
    fail("logits", "float64 on CUDA", "float32, bfloat16 or float16");
  }
  require(rows.classes <= INT_MAX / 2, "logits", rows.classes, "fewer than 2^30 classes on CUDA");
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const Device& device)
      : device_(device), stream_(reinterpret_cast<cudaStream_t>(device.stream)) {
    require_device(device);
  }

  void together(std::int64_t, const std::function<void()>& body) const override {
    const OnDevice scope(device_.index);
    body();
  }

  // The default streams are those of the present device.
  void* allocate(std::size_t bytes) const override {
    const OnDevice scope(device_.index);
    return cuda::allocate(bytes, device_.index, stream_);
  }
  void release(void* data) const override {
    const OnDevice scope(device_.index);
    check(cudaFreeAsync(data, stream_), "cudaFreeAsync");
  }
  void* allocate_status(std::size_t bytes) const override {
    const OnDevice scope(device_.index);
    void* data = nullptr;
    check(cudaHostAlloc(&data, bytes, cudaHostAllocPortable), "cudaHostAlloc");
    return data;
  }
  void release_status(void* data) const override { check(cudaFreeHost(data), "cudaFreeHost"); }
  void copy_to_device(void* to, const void* from, std::size_t bytes) const override {
    const OnDevice scope(device_.index);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    synchronize();
  }
  void copy_to_host(void* to, const void* from, std::size_t bytes) const override {
    const OnDevice scope(device_.index);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    synchronize();
  }
  void fill_zero(void* data, std::size_t bytes) const override {
    const OnDevice scope(device_.index);
    check(cudaMemsetAsync(data, 0, bytes, stream_), "cudaMemsetAsync");
  }
  void synchronize() const override {
    const OnDevice scope(device_.index);
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  void synchronize_device() const override {
    const OnDevice scope(device_.index);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  bool capturing() const override {
    const OnDevice scope(device_.index);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream_, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  std::size_t loss_totals_bytes() const override { return sizeof(LossMemory); }

  void start_loss(const LossTask& task, LossTotals* totals) const override {
    launch_start(task, memory_of(totals).parts, totals, stream_);
  }

  std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows, int) const override {
    require_supported(rows);
    return RowMemories(rows.rows, nullptr).bytes;
  }

  void cross_entropy(const CrossEntropyRows& rows, LossTotals* totals,
                     void* workspace) const override {
    require_supported(rows);
    const RowMemories memory(rows.rows, workspace);
    if (rows.softcap > 0) {
      launch_capped_rows(rows, totals, memory.records, stream_);
    } else if (rows.classes <= kShortRow) {
      launch_short_rows(rows, totals, memory.records, stream_);
    } else {
      const RowShape shape =
          row_shape(rows.classes, static_cast<std::size_t>(size_of(rows.dtype)),
                    largest_cluster(device_.index), shared_bytes_of_block(device_.index));
      launch_rows(rows, totals, memory.records, shape, stream_);
    }
    launch_row_ends(rows, memory.records, memory.parts, totals, stream_);
  }

  CrossEntropyResult finish_loss(const LossTask& task, LossTotals* totals,
                                 CrossEntropyStatus* status) const override {
    void* place = memory_of(totals).status;
    launch_finish(task, totals,
                  status != nullptr ? status : static_cast<CrossEntropyStatus*>(place), stream_);
    if (status != nullptr) return {};
    CrossEntropyStatus result;
    copy_to_host(&result, place, sizeof result);
    return result_of(result);
  }

  std::size_t gemm_workspace_bytes(std::int64_t, std::int64_t, std::int64_t) const override {
    return kGemmWorkspaceBytes;
  }
  void gemm(const Gemm& call, void* workspace) const override {
    cuda::gemm(call, workspace, kGemmWorkspaceBytes, stream_);
  }
  // cuBLASLt has its fast 16-bit kernels where what lies side by side is a multiple of 16 bytes
  // long: where it is none, the classes beyond the last 64 go by themselves, and first, so that
  // only they are rounded twice.
  void linear_gradients(const LinearGradients& call, void* workspace) const override {
    constexpr std::int64_t kMultiple = 64, kWorthwhile = 4096;
    const std::int64_t classes = call.grad.cols, whole = classes / kMultiple * kMultiple;
    if (call.grad.dtype == DType::f32 || classes % 8 == 0 || classes < kWorthwhile) {
      Backend::linear_gradients(call, workspace);
      return;
    }
    const auto part = [&](std::int64_t first, std::int64_t count) {
      LinearGradients own = call;
      own.grad.data = static_cast<const char*>(call.grad.data) + first * size_of(call.grad.dtype);
      own.grad.cols = own.weight.rows = count;
      own.weight.data = static_cast<const char*>(call.weight.data) +
                        first * call.weight.row_stride * size_of(call.weight.dtype);
      if (call.grad_weight != nullptr) own.grad_weight += first * call.hidden.cols;
      own.accumulate_hidden = first == 0;
      Backend::linear_gradients(own, workspace);
    };
    part(whole, classes - whole);
    part(0, whole);
  }

  bool half_products() const override { return true; }
  std::int64_t gemm_row_multiple() const override { return 128; }
  // cuBLASLt's fast kernels want every row to begin at 16 bytes.
  std::int64_t logits_stride_multiple() const override { return 64; }
  void column_sum(const ConstMatrix& x, float alpha, float* out, bool accumulate) const override {
    cuda::column_sum(x, alpha, out, accumulate, stream_);
  }
  void convert(const ConstMatrix& from, void* to, DType to_dtype,
               std::int64_t to_row_stride) const override {
    const OnDevice scope(device_.index);
    cuda::convert(from, to, to_dtype, to_row_stride, stream_);
  }

  double grad_norm(const std::vector<const void*>& grads, DType dtype,
                   GradPartials& partials) const override {
    const OnDevice scope(device_.index);
    const PartialSums sums = make_room(partials, stream_);
    fill_partials(grads.data(), dtype, partials, sums, stream_);
    return cuda::norm_of(sums, partials.chunks(), stream_);
  }
  GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype,
                        const GradPartials& chunks, double limit) const override {
    const OnDevice scope(device_.index);
    return cuda::first_beyond(grads.data(), dtype, chunks, limit, stream_);
  }
  void scale(const std::vector<void*>& grads, DType dtype, const GradPartials& chunks,
             double factor) const override {
    const OnDevice scope(device_.index);
    cuda::scale(grads.data(), dtype, chunks, factor, stream_);
  }
  void accumulate(const std::vector<void*>& totals, const std::vector<const void*>& src,
                  const AccumulateOptions& options, GradPartials& partials) const override {
    const OnDevice scope(device_.index);
    const PartialSums sums = make_room(partials, stream_);
    cuda::accumulate(totals.data(), src.data(), options, partials, sums, stream_);
  }
  double norm_of(const GradPartials& partials) const override {
    const OnDevice scope(device_.index);
    return cuda::norm_of(sums_of(partials), partials.chunks(), stream_);
  }

  std::unique_ptr<StepEngine> step_engine(const OptimizerOptions& options,
                                          const std::vector<Segment>& segments) const override {
    const OnDevice scope(device_.index);
    return cuda::step_engine(options, segments, device_.index, stream_);
  }

  void dropout(const float* x, float* out, std::int64_t size, double p, const DropoutKey& key,
               std::int64_t first) const override {
    const OnDevice scope(device_.index);
    cuda::dropout(dropout_task(p, key), x, out, size, first, stream_);
  }
  void dropout_mask(std::uint8_t* out, std::int64_t size, double p, const DropoutKey& key,
                    std::int64_t first) const override {
    const OnDevice scope(device_.index);
    cuda::dropout_mask(dropout_task(p, key), out, size, first, stream_);
  }

 private:
  Device device_;
  cudaStream_t stream_;
};

}  // namespace

BackendHandle backend(const Device& device) { return std::make_shared<const CudaBackend>(device); }

}  // namespace flatstep::cuda
