// A block of threads takes a chunk, a warp 128 elements at a time: those that share a scale in
// 8-bit state, and whose random bits come from 16 counters. A lane has elements lane + 32 j.
#include "cuda/update.h"

#define FLATSTEP_ELEMENTS cuda
#include "core/rounding.h"
#include "cuda/device.h"
#include "cuda/find.h"
#include "cuda/tensors.h"
#include "element/low_bit.h"
#include "element/update.h"

namespace flatstep::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kEach = 4;  // elements of a lane
constexpr int kBlocksPerMultiprocessor = 4;
static_assert(kStateBlock == kEach * kWarp && kRoundingBlock == kStateBlock, "one block a warp");

using Scalars = UpdateScalars<float>;

// The elements of a lane in one block: j is there for 32 j < left. Where it is not, the arithmetic
// is that of zeros, as on the CPU.
struct Lane {
  std::int64_t at;  // the first one's index in the tensor
  int left;

  __device__ __forceinline__ bool has(int j) const { return kWarp * j < left; }
};

template <class T>
__device__ __forceinline__ const T* at(const void* base, const Lane& lane) {
  return static_cast<const T*>(base) + lane.at;
}
template <class T>
__device__ __forceinline__ T* at(void* base, const Lane& lane) {
  return static_cast<T*>(base) + lane.at;
}

// Numbers as they lie in memory: a conversion waits for them, and other loads should be on their
// way by then.
struct Raw {
  std::uint32_t bits[kEach];
};

template <class T>
__device__ __forceinline__ Raw load_as(const void* base, const Lane& lane) {
  const T* from = at<T>(base, lane);
  Raw raw;
#pragma unroll
  for (int j = 0; j < kEach; ++j) raw.bits[j] = lane.has(j) ? from[kWarp * j] : 0u;
  return raw;
}
__device__ __forceinline__ Raw load(const void* base, DType dtype, const Lane& lane) {
  return dtype == DType::f32 ? load_as<std::uint32_t>(base, lane)
                             : load_as<std::uint16_t>(base, lane);
}

__device__ __forceinline__ void convert(const Raw& raw, DType dtype, float (&x)[kEach]) {
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    x[j] = dtype == DType::f32    ? float_of(raw.bits[j])
           : dtype == DType::bf16 ? to_float(static_cast<bf16_bits>(raw.bits[j]))
                                  : to_float(static_cast<f16_bits>(raw.bits[j]));
  }
}

template <class T, class Value>
__device__ __forceinline__ void store(void* base, const Lane& lane, const Value& value) {
  T* to = at<T>(base, lane);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (lane.has(j)) to[kWarp * j] = value(j);
  }
}

// Moments are read and written once a step.
__device__ __forceinline__ void load_moment(const void* base, const Lane& lane, float (&x)[kEach]) {
  const float* from = at<float>(base, lane);
#pragma unroll
  for (int j = 0; j < kEach; ++j) x[j] = lane.has(j) ? load_streaming(from + kWarp * j) : 0.0f;
}
__device__ __forceinline__ void store_moment(void* base, const Lane& lane,
                                             const float (&x)[kEach]) {
  float* to = at<float>(base, lane);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (lane.has(j)) store_streaming(to + kWarp * j, x[j]);
  }
}

// New codes and, from the first lane, the block's new scale.
template <class Moment>
__device__ __forceinline__ void store_codes(void* base, std::uint16_t* scale, const Lane& lane,
                                            const float (&moments)[kEach],
                                            const RoundingBits4& random) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const std::uint32_t bits = Moment::magnitude(moments[j]);
    largest = bits > largest ? bits : largest;
  }
  const std::uint32_t new_scale = Moment::scale_of(warp_max(largest));
  if (threadIdx.x % kWarp == 0) *scale = static_cast<std::uint16_t>(new_scale);
  store<std::uint8_t>(base, lane, [&](int j) {
    return static_cast<std::uint8_t>(Moment::encode(moments[j], random.bits[j], new_scale));
  });
}

// ---- state -------------------------------------------------------------------------------------
// load() begins to read the state of a block; apply() makes the new parameters, and stores the new
// state.

// The buffer is there where there is momentum.
__device__ __forceinline__ void sgd(float (&p)[kEach], const float (&g)[kEach],
                                    float (&buffer)[kEach], bool momentum, const Scalars& s) {
  with_sgd_variant(momentum, s.first_step, s.nesterov, [&](auto has, auto first, auto nesterov) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      p[j] = sgd_param<false, has, first, nesterov>(p[j], scaled_gradient(g[j], s), buffer[j], s);
    }
  });
}

struct SgdFull {
  static constexpr bool kRandom = false;
  float buffer[kEach] = {};

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t, const Lane& lane) {
    if (record.state1 != nullptr) load_moment(record.state1, lane, buffer);
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t, const Lane& lane,
                                        const RoundingBits4&, float (&p)[kEach],
                                        const float (&g)[kEach], const Scalars& s) {
    sgd(p, g, buffer, record.state1 != nullptr, s);
    if (record.state1 != nullptr) store_moment(record.state1, lane, buffer);
  }
};

struct SgdLowBit {
  static constexpr bool kRandom = true;
  Raw codes;
  std::uint32_t scale;

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t block,
                                       const Lane& lane) {
    codes = load_as<std::uint8_t>(record.state1, lane);
    scale = record.scale1[block];
    __syncwarp();  // the first lane will write the new one
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t block,
                                        const Lane& lane, const RoundingBits4& random,
                                        float (&p)[kEach], const float (&g)[kEach],
                                        const Scalars& s) {
    float buffer[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) buffer[j] = FirstMoment::decode(codes.bits[j], scale);
    sgd(p, g, buffer, true, s);
    store_codes<FirstMoment>(record.state1, record.scale1 + block, lane, buffer, random);
  }
};

template <bool kDecoupled>
struct AdamFull {
  static constexpr bool kRandom = false;
  float m[kEach], v[kEach], top[kEach];

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t, const Lane& lane) {
    load_moment(record.state1, lane, m);
    load_moment(record.state2, lane, v);
    if (record.state3 != nullptr) load_moment(record.state3, lane, top);
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t, const Lane& lane,
                                        const RoundingBits4&, float (&p)[kEach],
                                        const float (&g)[kEach], const Scalars& s) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      update_moments<kDecoupled, Rounding::native>(scaled_gradient(g[j], s), p[j], m[j], v[j], s);
    }
    store_moment(record.state1, lane, m);
    store_moment(record.state2, lane, v);
    if (record.state3 != nullptr) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) v[j] = top[j] > v[j] ? top[j] : v[j];
      store_moment(record.state3, lane, v);
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      p[j] = adam_param<kDecoupled, Rounding::native>(p[j], m[j], v[j], s);
    }
  }
};

template <bool kDecoupled>
struct AdamLowBit {
  static constexpr bool kRandom = true;
  Raw codes1, codes2;
  std::uint32_t scale1, scale2;

  __device__ __forceinline__ void load(const TensorRecord& record, std::int64_t block,
                                       const Lane& lane) {
    codes1 = load_as<std::uint8_t>(record.state1, lane);
    codes2 = load_as<std::uint8_t>(record.state2, lane);
    scale1 = record.scale1[block];
    scale2 = record.scale2[block];
    __syncwarp();  // the first lane will write the new ones
  }
  __device__ __forceinline__ void apply(const TensorRecord& record, std::int64_t block,
                                        const Lane& lane, const RoundingBits4& random,
                                        float (&p)[kEach], const float (&g)[kEach],
                                        const Scalars& s) {
    float m[kEach], v[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      m[j] = FirstMoment::decode(codes1.bits[j], scale1);
      v[j] = SecondMoment::decode(codes2.bits[j], scale2);
      update_moments<kDecoupled, Rounding::native>(scaled_gradient(g[j], s), p[j], m[j], v[j], s);
      p[j] = adam_param_short<kDecoupled>(p[j], m[j], v[j], s);
    }
    store_codes<FirstMoment>(record.state1, record.scale1 + block, lane, m, random);
    store_codes<SecondMoment>(record.state2, record.scale2 + block, lane, v, random);
  }
};

// ---- visits ------------------------------------------------------------------------------------

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
