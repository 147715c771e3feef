// A warp takes a chunk. Its lanes are the 32 accumulators of the CPU's sum of squares
// (cpu/kernels/reduction.cpp), so the sums have the same bits: lane l adds elements l, l + 32, ...
#include "cuda/gradient.h"

#include "cuda/arithmetic.h"
#include "cuda/find.h"
#include "cuda/tensors.h"
#include "element/factor.h"
#include "flatstep/error.h"

namespace flatstep::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
// Elements that a lane has on their way from memory.
constexpr int kAhead = 16;

struct LaneSums {
  double of[kWarps][kWarp];
};

// The partial sums of one chunk: load(i) begins to read element i, finish(i, loaded) gives it.
template <class Load, class Finish>
__device__ void sum_chunk(int size, double (&sums)[kWarp], double* total, std::uint32_t* largest,
                          const Load& load, const Finish& finish) {
  double sum = 0;
  std::uint32_t top = 0;
  const auto add = [&](float x) {
    const double value = static_cast<double>(x);
    sum = fma(value, value, sum);  // the square is exact
    const std::uint32_t bits = bits_of(x) & 0x7fffffffu;
    top = bits > top ? bits : top;
  };
  int i = lane();
  for (; i + (kAhead - 1) * kWarp < size; i += kAhead * kWarp) {
    decltype(load(i)) loaded[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) loaded[k] = load(i + k * kWarp);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) add(finish(i + k * kWarp, loaded[k]));
  }
  for (; i < size; i += kWarp) add(finish(i, load(i)));

  top = warp_max(top);
  sums[lane()] = sum;
  __syncwarp();
  if (lane() != 0) return;
  double all = 0;
#pragma unroll
  for (int k = 0; k < kWarp; ++k) all += sums[k];
  *total = all;
  *largest = top;
}

// The chunk of this warp, if there is one.
template <int kLists>
__device__ __forceinline__ bool own_chunk(const TensorBatch<kLists>& batch, int& number) {
  number = static_cast<int>(blockIdx.x) * kWarps + warp();
  return number < batch.chunks;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    partials_kernel(const TensorBatch<1> batch, const PartialSums partials) {
  int number;
  if (!own_chunk(batch, number)) return;
  const Chunk chunk = chunk_of(batch, number);
  const T* grad = static_cast<const T*>(batch.data[0][chunk.tensor]) + chunk.begin;
  const std::int64_t at = batch.first_chunk + number;
  sum_chunk(
      chunk.size, shared_memory<LaneSums>().of[warp()], partials.sums + at, partials.largest + at,
      [=](int i) { return grad[i]; }, [](int, T loaded) { return to_float(loaded); });
}

template <class T>
struct Addends {
  float total;
  T added;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const TensorBatch<2> batch, float factor, bool overwrite,
                      const PartialSums partials) {
  int number;
  if (!own_chunk(batch, number)) return;
  const Chunk chunk = chunk_of(batch, number);
  float* totals = static_cast<float*>(batch.data[0][chunk.tensor]) + chunk.begin;
  const T* src = static_cast<const T*>(batch.data[1][chunk.tensor]) + chunk.begin;
  const std::int64_t at = batch.first_chunk + number;
  sum_chunk(
      chunk.size, shared_memory<LaneSums>().of[warp()], partials.sums + at, partials.largest + at,
      [=](int i) { return Addends<T>{overwrite ? 0.0f : totals[i], src[i]}; },
      [=](int i, const Addends<T>& loaded) {
        const float added = to_float(loaded.added);
        const float total = overwrite ? factor * added : multiply_add(factor, added, loaded.total);
        totals[i] = total;
        return total;
      });
}

struct Factors {
  float first, second;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const TensorBatch<1> batch, const Factors factors) {
  // From the end: that is what the norm has left in the cache.
  const Chunk chunk = chunk_of(batch, batch.chunks - 1 - static_cast<int>(blockIdx.x));
  T* grad = static_cast<T*>(batch.data[0][chunk.tensor]) + chunk.begin;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.size; i += kThreads) {
    grad[i] = from_float<T>(to_float(grad[i]) * factors.first * factors.second);
  }
}

// The lowest of chunk * kChunk + index over the elements that are not at most the limit.
template <class T>
__global__ void __launch_bounds__(kThreads)
    find_kernel(const TensorBatch<1> batch, double limit, unsigned long long* first) {
  auto& lowest = shared_memory<unsigned>();
  const Chunk chunk = chunk_of(batch, static_cast<int>(blockIdx.x));
  const T* grad = static_cast<const T*>(batch.data[0][chunk.tensor]) + chunk.begin;
  const unsigned found = first_in_chunk(grad, chunk.size, limit, lowest);
  if (threadIdx.x == 0 && found < kNotFound) {
    const std::int64_t number = batch.first_chunk + static_cast<std::int64_t>(blockIdx.x);
    atomicMin(first, static_cast<unsigned long long>(number * kChunk + found));
  }
}

// Kernels have no float64.
void refuse_float64(DType dtype, const char* argument) {
  if (dtype == DType::f64) {
    throw InvalidArgument(std::string(argument) +
                          ": got float64 on CUDA, expected float32, bfloat16 or float16");
  }
}

// Calls body(an element of the type).
template <class Body>
void with_type(DType dtype, const char* argument, const Body& body) {
  refuse_float64(dtype, argument);
  if (dtype == DType::f32) {
    body(float{});
  } else if (dtype == DType::bf16) {
    body(bf16_bits{});
  } else {
    body(f16_bits{});
  }
}

unsigned blocks_of_warps(std::int32_t chunks) {
  return static_cast<unsigned>((chunks + kWarps - 1) / kWarps);
}

}  // namespace

PartialSums make_room(GradPartials& partials, cudaStream_t stream) {
  constexpr std::size_t kBytes = sizeof(double) + sizeof(std::uint32_t);
  const std::int64_t chunks = partials.chunks();
  auto owner = std::make_shared<DevicePartials>();
  owner->memory = allocate_on_stream(static_cast<std::size_t>(chunks) * kBytes, stream);
  owner->sums.sums = static_cast<double*>(owner->memory.get());
  owner->sums.largest = reinterpret_cast<std::uint32_t*>(owner->sums.sums + chunks);
  partials.on_device = owner;
  partials.sums.clear();
  return owner->sums;
}

void fill_partials(const void* const* grads, DType dtype, const GradPartials& chunks,
                   const PartialSums& partials, cudaStream_t stream) {
  with_type(dtype, "grads", [&](auto type) {
    for_each_batch({grads}, chunks, [&](const TensorBatch<1>& batch) {
      launch(partials_kernel<decltype(type)>,
             {blocks_of_warps(batch.chunks), kThreads, sizeof(LaneSums)}, stream, batch, partials);
    });
  });
}

GradNorm first_beyond(const void* const* grads, DType dtype, const GradPartials& chunks,
                      double limit, cudaStream_t stream) {
  const StreamMemory memory = allocate_on_stream(sizeof(unsigned long long), stream);
  auto* first = static_cast<unsigned long long*>(memory.get());
  check(cudaMemsetAsync(first, 0xff, sizeof *first, stream), "search in gradients");
  with_type(dtype, "grads", [&](auto type) {
    for_each_batch({grads}, chunks, [&](const TensorBatch<1>& batch) {
      launch(find_kernel<decltype(type)>,
             {static_cast<unsigned>(batch.chunks), kThreads, sizeof(unsigned)}, stream, batch,
             limit, first);
    });
  });
  const unsigned long long found = read_back(first, stream, "search in gradients");
  GradNorm norm;
  if (found == ~0ull) return norm;
  const auto chunk = static_cast<std::int64_t>(found / kChunk);
  std::size_t tensor = 0;
  while (chunks.first_chunk[tensor + 1] <= chunk) ++tensor;
  norm.nonfinite_segment = static_cast<std::int64_t>(tensor);
  norm.nonfinite_index = static_cast<std::int64_t>(found) - chunks.first_chunk[tensor] * kChunk;
  return norm;
}

void scale(void* const* grads, DType dtype, const GradPartials& chunks, double factor,
           cudaStream_t stream) {
  float parts[2];
  split_factor(factor, parts);
  with_type(dtype, "grads", [&](auto type) {
    for_each_batch({grads}, chunks, [&](const TensorBatch<1>& batch) {
      launch(scale_kernel<decltype(type)>, {static_cast<unsigned>(batch.chunks), kThreads}, stream,
             batch, Factors{parts[0], parts[1]});
    });
  });
}

void accumulate(void* const* totals, const void* const* src, const AccumulateOptions& options,
                const GradPartials& chunks, const PartialSums& partials, cudaStream_t stream) {
  refuse_float64(options.dtype, "totals");
  with_type(options.src_dtype, "src", [&](auto type) {
    for_each_batch({totals, src}, chunks, [&](const TensorBatch<2>& batch) {
      launch(accumulate_kernel<decltype(type)>,
             {blocks_of_warps(batch.chunks), kThreads, sizeof(LaneSums)}, stream, batch,
             static_cast<float>(options.scale), options.overwrite, partials);
    });
  });
}

}  // namespace flatstep::cuda
