// A block of threads takes a chunk, a warp 128 elements at a time: those that share a scale in
// 8-bit state, and whose random bits come from 16 counters. A lane has elements lane + 32 j.
#include "cuda/update.h"

#include "cuda/find.h"
#include "cuda/tensors.h"
#include "cuda/update_state.h"

namespace flatstep::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
[[maybe_unused]] constexpr int kBlocksPerMultiprocessor = 4;
static_assert(kStateBlock == kEach * kWarp && kRoundingBlock == kStateBlock, "one block a warp");

__device__ void report_skip(const UpdateCall& call, const TensorBatch<1>& batch, const Chunk& chunk,
                            double limit) {
  auto& lowest = shared_memory<unsigned>();
  const void* grad = batch.data[0][chunk.tensor];
  unsigned found;
  if (call.grad_dtype == DType::f32) {
    found =
        first_in_chunk(static_cast<const float*>(grad) + chunk.begin, chunk.size, limit, lowest);
  } else if (call.grad_dtype == DType::bf16) {
    found = first_in_chunk(static_cast<const bf16_bits*>(grad) + chunk.begin, chunk.size, limit,
                           lowest);
  } else {
    found =
        first_in_chunk(static_cast<const f16_bits*>(grad) + chunk.begin, chunk.size, limit, lowest);
  }
  if (threadIdx.x != 0) return;
  call.status->nonfinite_segment = batch.first_tensor + chunk.tensor;
  call.status->nonfinite_index = chunk.begin + found;
}

// Parameters as the tensor has them, and their copy.
__device__ __forceinline__ void store_param(const UpdateCall& call, const TensorRecord& record,
                                            const Lane& lane, const RoundingBits4& random,
                                            const float (&p)[kEach]) {
  if (call.param_dtype == DType::bf16) {
    store<std::uint16_t>(record.param, lane, [&](int j) {
      return static_cast<std::uint16_t>(rounded_to_bf16(p[j], random.bits[j]));
    });
    return;
  }
  store<float>(record.param, lane, [&](int j) { return p[j]; });
  if (record.bf16_copy != nullptr) {
    store<bf16_bits>(record.bf16_copy, lane, [&](int j) { return from_float<bf16_bits>(p[j]); });
  }
}

__device__ __forceinline__ void zero(void* grad, DType dtype, const Lane& lane) {
  if (dtype == DType::f32) {
    store<float>(grad, lane, [](int) { return 0.0f; });
  } else {
    store<std::uint16_t>(grad, lane, [](int) { return std::uint16_t{0}; });
  }
}

template <class State>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    update_kernel(const TensorBatch<1> batch, const UpdateCall call) {
  // From the end: that is what the norm has left in the cache.
  const int number = batch.chunks - 1 - static_cast<int>(blockIdx.x);
  const StepState step = *call.state;
  if (step.skipped != 0) {
    if (batch.first_chunk + number == step.beyond_chunk) {
      report_skip(call, batch, chunk_of(batch, number), step.limit);
    }
    return;
  }
  const Chunk chunk = chunk_of(batch, number);
  const std::int64_t tensor = batch.first_tensor + chunk.tensor;
  const TensorRecord record = call.records[tensor];
  const Scalars scalars = call.scalars[record.group];
  void* grad = batch.data[0][chunk.tensor];
  for (int first = warp() * kStateBlock; first < chunk.size; first += kWarps * kStateBlock) {
    const int in_block = static_cast<int>(threadIdx.x) % kWarp;
    const Lane lane{chunk.begin + first + in_block, chunk.size - first - in_block};
    const std::int64_t block = (chunk.begin + first) / kStateBlock;
    const Raw param = load(record.param, call.param_dtype, lane);
    const Raw gradient = load(grad, call.grad_dtype, lane);
    State state;
    state.load(record, block, lane);
    RoundingBits4 random{};
    if (State::kRandom || call.param_dtype == DType::bf16) {
      random = rounding_bits_of_lane({call.seed, step.step_count, tensor}, block, in_block);
    }
    float p[kEach], g[kEach];
    convert(param, call.param_dtype, p);
    convert(gradient, call.grad_dtype, g);
    state.apply(record, block, lane, random, p, g, scalars);
    store_param(call, record, lane, random, p);
    if (call.zero_grad) zero(grad, call.grad_dtype, lane);
  }
}

using Kernel = void (*)(TensorBatch<1>, UpdateCall);

Kernel kernel_of(Algorithm algorithm, StateFormat format) {
  const bool full = format == StateFormat::full;
  if (algorithm == Algorithm::sgd) return full ? update_kernel<SgdFull> : update_kernel<SgdLowBit>;
  if (algorithm == Algorithm::adam) {
    return full ? update_kernel<AdamFull<false>> : update_kernel<AdamLowBit<false>>;
  }
  return full ? update_kernel<AdamFull<true>> : update_kernel<AdamLowBit<true>>;
}

}  // namespace

void update(const UpdateCall& call, Algorithm algorithm, StateFormat format, void* const* grads,
            const GradPartials& chunks, cudaStream_t stream) {
  const Kernel kernel = kernel_of(algorithm, format);
  for_each_batch({grads}, chunks, [&](const TensorBatch<1>& batch) {
    launch(kernel, {static_cast<unsigned>(batch.chunks), kThreads, sizeof(unsigned)}, stream, batch,
           call);
  });
}

}  // namespace flatstep::cuda
