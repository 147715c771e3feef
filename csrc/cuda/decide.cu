#include "cuda/decide.h"

#include "core/step_scale.h"
#include "cuda/arithmetic.h"
#include "element/update_scalars.h"

namespace flatstep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = static_cast<int>(GradPartials::kGroup);

struct Sums {
  double of_group[kThreads];
  double total;
};

// A thread adds the chunks of a group, the first thread the groups: the order of flatstep/grad.h.
__device__ double norm_of_sums(const double* sums, std::int64_t chunks, Sums& shared) {
  const std::int64_t groups = (chunks + kGroup - 1) / kGroup;
  double total = 0;
  for (std::int64_t first = 0; first < groups; first += kThreads) {
    const std::int64_t group = first + static_cast<std::int64_t>(threadIdx.x);
    const std::int64_t begin = group * kGroup;
    const auto left = static_cast<int>(chunks - begin < kGroup ? chunks - begin : kGroup);
    double sum = 0;
#pragma unroll 16
    for (int i = 0; i < left; ++i) sum += sums[begin + i];
    shared.of_group[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      const auto count = static_cast<int>(groups - first < kThreads ? groups - first : kThreads);
      for (int i = 0; i < count; ++i) total += shared.of_group[i];
      shared.total = total;
    }
    __syncthreads();
  }
  return groups > 0 ? square_root(shared.total) : 0.0;
}

constexpr unsigned long long kNowhere = ~0ull;

// The first chunk with an element that is not at most the limit, for every thread.
__device__ unsigned long long first_chunk_beyond(const std::uint32_t* largest, std::int64_t chunks,
                                                 double limit, unsigned long long& first) {
  if (threadIdx.x == 0) first = kNowhere;
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < chunks; i += kThreads) {
    if (static_cast<double>(float_of(largest[i])) <= limit) continue;
    atomicMin(&first, static_cast<unsigned long long>(i));
    break;
  }
  __syncthreads();
  return first;
}

// By one thread.
__device__ void report(const DecideCall& call, const StepScale& scale, double rate,
                       unsigned long long beyond) {
  StepState state = *call.state;
  state.skipped = beyond != kNowhere ? 1 : 0;
  state.beyond_chunk = static_cast<std::int64_t>(beyond);
  state.limit = scale.limit;
  state.consecutive_skips = state.skipped != 0 ? state.consecutive_skips + 1 : 0;
  state.step_count += state.skipped != 0 ? 0 : 1;
  *call.state = state;

  StepStatus status;
  status.grad_norm = scale.grad_norm;
  status.clip_scale = state.skipped != 0 ? 1.0 : scale.clip_scale;
  status.lr = rate;
  status.step_count = state.step_count;
  status.skipped = state.skipped;
  status.consecutive_skips = state.consecutive_skips;
  *call.status = status;
}

struct Decision {
  Sums sums;
  unsigned long long beyond;
  std::int64_t step;
};

__global__ void __launch_bounds__(kThreads) decide_kernel(const DecideCall call) {
  auto& shared = shared_memory<Decision>();
  const double norm = norm_of_sums(call.partials.sums, call.chunks, shared.sums);
  const StepScale scale = step_scale(norm, call.grad_scale, call.max_norm, call.largest,
                                     static_cast<double>(kLargest<float>));
  const double rate = call.device_lr != nullptr ? *call.device_lr : call.lr;
  const unsigned long long beyond =
      scale.look
          ? first_chunk_beyond(call.partials.largest, call.chunks, scale.limit, shared.beyond)
          : kNowhere;
  if (threadIdx.x == 0) {
    report(call, scale, rate, beyond);
    shared.step = call.state->step_count;
  }
  __syncthreads();
  if (beyond != kNowhere) return;
  for (int i = static_cast<int>(threadIdx.x); i < call.group_count; i += kThreads) {
    UpdateGroup group = call.groups[i].scalars;
    if (!call.groups[i].own_weight_decay) group.weight_decay = call.weight_decay;
    call.scalars[i] = scalars_of<float>(group, rate, shared.step, scale.multiplier);
  }
}

__global__ void __launch_bounds__(kThreads)
    norm_kernel(const PartialSums partials, std::int64_t chunks, double* norm) {
  const double value = norm_of_sums(partials.sums, chunks, shared_memory<Sums>());
  if (threadIdx.x == 0) *norm = value;
}

}  // namespace

void decide(const DecideCall& call, cudaStream_t stream) {
  launch(decide_kernel, {1, kThreads, sizeof(Decision)}, stream, call);
}

double norm_of(const PartialSums& partials, std::int64_t chunks, cudaStream_t stream) {
  const StreamMemory memory = allocate_on_stream(sizeof(double), stream);
  auto* norm = static_cast<double*>(memory.get());
  launch(norm_kernel, {1, kThreads, sizeof(Sums)}, stream, partials, chunks, norm);
  return read_back(norm, stream, "norm of gradients");
}

}  // namespace flatstep::cuda
