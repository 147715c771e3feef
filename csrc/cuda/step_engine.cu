// A step on the device, in the order of its stream and without waiting: partial sums of the norm
// (unless they are handed over), the decision, the update. It allocates nothing, so it can be
// captured in a graph; what the host has to know lies in a StepStatus.
#include "cuda/step_engine.h"

#include <algorithm>

#include "core/optim.h"
#include "cuda/memory.h"
#include "cuda/update.h"

namespace flatstep::cuda {
namespace {

void refuse_what_only_the_cpu_has(const OptimizerOptions& options) {
  if (options.dtype == DType::f64) {
    throw InvalidArgument("params: got float64 on CUDA, expected float32 or bfloat16");
  }
  if (options.mode == OptimizerMode::torch) {
    throw InvalidArgument(
        "mode: got 'torch' on CUDA, expected 'native': its roundings are those of PyTorch's CPU "
        "kernels");
  }
}

StepGroup group_of(const OptimizerOptions& options, const Segment& segment) {
  StepGroup group{};
  group.scalars = update_group(options, segment);
  group.own_weight_decay = segment.weight_decay.has_value();
  return group;
}

bool same_group(const StepGroup& a, const StepGroup& b) {
  return a.own_weight_decay == b.own_weight_decay && a.scalars.lr_scale == b.scalars.lr_scale &&
         a.scalars.weight_decay == b.scalars.weight_decay && a.scalars.beta1 == b.scalars.beta1 &&
         a.scalars.beta2 == b.scalars.beta2;
}

TensorRecord record_of(const Segment& segment, std::size_t group) {
  return {segment.param,
          segment.state1,
          segment.state2,
          segment.state3,
          static_cast<std::uint16_t*>(segment.scale1),
          static_cast<std::uint16_t*>(segment.scale2),
          segment.bf16_copy,
          static_cast<std::int32_t>(group)};
}

// An array on the device, filled once.
template <class T>
class Table {
 public:
  Table(const std::vector<T>& values, cudaStream_t stream)
      : memory_(allocate_on_device(values.size() * sizeof(T))) {
    if (values.empty()) return;
    check(cudaMemcpyAsync(memory_.get(), values.data(), values.size() * sizeof(T),
                          cudaMemcpyHostToDevice, stream),
          "tables of an optimizer");
    check(cudaStreamSynchronize(stream), "tables of an optimizer");
  }
  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  DeviceMemory memory_;
};

class CudaStepEngine final : public StepEngine {
 public:
  CudaStepEngine(const OptimizerOptions& options, const std::vector<Segment>& segments, int device,
                 cudaStream_t stream)
      : device_(device),
        stream_(stream),
        chunks_(sizes_of(segments)),
        own_status_(allocate_pinned(sizeof(StepStatus))),
        state_(std::vector<StepState>(1), stream) {
    std::vector<StepGroup> groups;
    std::vector<TensorRecord> records;
    for (const Segment& segment : segments) {
      const StepGroup group = group_of(options, segment);
      const auto known = std::find_if(groups.begin(), groups.end(), [&](const StepGroup& other) {
        return same_group(group, other);
      });
      records.push_back(record_of(segment, static_cast<std::size_t>(known - groups.begin())));
      if (known == groups.end()) groups.push_back(group);
    }
    group_count_ = static_cast<std::int32_t>(groups.size());
    groups_ = std::make_unique<Table<StepGroup>>(groups, stream);
    records_ = std::make_unique<Table<TensorRecord>>(records, stream);
    scalars_ = allocate_on_device(groups.size() * sizeof(UpdateScalars<float>));
    const auto chunks = static_cast<std::size_t>(chunks_.chunks());
    partials_ = allocate_on_device(chunks * (sizeof(double) + sizeof(std::uint32_t)));
    own_sums_.sums = static_cast<double*>(partials_.get());
    own_sums_.largest = reinterpret_cast<std::uint32_t*>(own_sums_.sums + chunks);
  }

  StepResult step(const StepCall& call) override {
    const OnDevice scope(device_);
    const StepOptions& options = call.step_options;
    if (options.stream) {
      last_stream_ = reinterpret_cast<cudaStream_t>(*options.stream);
    } else {
      last_stream_ = stream_;
    }
    auto* own_status = static_cast<StepStatus*>(own_status_.get());
    StepStatus* status = options.status != nullptr ? options.status : own_status;

    decide(decide_call(call, sums_for(call), status), last_stream_);
    update({records_->data(), scalars(), state_.data(), status, call.options.seed,
            call.options.dtype, call.grad_dtype, options.zero_grad},
           call.options.algorithm, format_of(call), call.grads.data(), chunks_, last_stream_);
    if (options.status != nullptr) return {};
    check(cudaStreamSynchronize(last_stream_), "step without a status, which waits for its result");
    return {own_status->grad_norm,       own_status->clip_scale,
            own_status->skipped != 0,    own_status->nonfinite_segment,
            own_status->nonfinite_index, own_status->consecutive_skips};
  }

  std::int64_t step_count() const override {
    const OnDevice scope(device_);
    // A graph may have been replayed on any stream.
    check(cudaDeviceSynchronize(), "step_count");
    return read_back(&state_.data()->step_count, last_stream_, "step_count");
  }

  void set_step_count(std::int64_t count) override {
    const OnDevice scope(device_);
    check(cudaDeviceSynchronize(), "step_count");  // as above: a step would write the old one back
    check(cudaMemcpyAsync(&state_.data()->step_count, &count, sizeof count, cudaMemcpyHostToDevice,
                          last_stream_),
          "step_count");
    check(cudaStreamSynchronize(last_stream_), "step_count");
  }

 private:
  UpdateScalars<float>* scalars() const {
    return static_cast<UpdateScalars<float>*>(scalars_.get());
  }

  // SGD without momentum has no state.
  static StateFormat format_of(const StepCall& call) {
    const bool stateless = call.options.algorithm == Algorithm::sgd && !(call.options.momentum > 0);
    return stateless ? StateFormat::full : call.options.state;
  }

  // The sums that were handed over, or those of a visit of the gradients.
  PartialSums sums_for(const StepCall& call) const {
    if (call.step_options.partials != nullptr) return sums_of(*call.step_options.partials);
    fill_partials(call.grads.data(), call.grad_dtype, chunks_, own_sums_, last_stream_);
    return own_sums_;
  }

  DecideCall decide_call(const StepCall& call, const PartialSums& sums, StepStatus* status) const {
    DecideCall decide{};
    decide.partials = sums;
    decide.chunks = chunks_.chunks();
    decide.lr = call.step_options.lr;
    decide.device_lr = call.step_options.device_lr;
    decide.max_norm = call.step_options.max_norm.value_or(0.0);
    decide.grad_scale = call.step_options.grad_scale;
    decide.largest = largest_gradient(call.options);
    decide.weight_decay = call.options.weight_decay;
    decide.groups = groups_->data();
    decide.scalars = scalars();
    decide.group_count = group_count_;
    decide.state = state_.data();
    decide.status = status;
    return decide;
  }

  int device_;
  cudaStream_t stream_, last_stream_ = stream_;
  GradPartials chunks_;
  PinnedMemory own_status_;
  Table<StepState> state_;
  std::unique_ptr<Table<StepGroup>> groups_;
  std::unique_ptr<Table<TensorRecord>> records_;
  std::int32_t group_count_ = 0;
  DeviceMemory scalars_, partials_;
  PartialSums own_sums_{};
};

}  // namespace

std::unique_ptr<StepEngine> step_engine(const OptimizerOptions& options,
                                        const std::vector<Segment>& segments, int device,
                                        cudaStream_t stream) {
  refuse_what_only_the_cpu_has(options);
  const OnDevice scope(device);
  return std::make_unique<CudaStepEngine>(options, segments, device, stream);
}

}  // namespace flatstep::cuda
