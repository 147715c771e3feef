#include "demo.h"

#include "cuda/cluster.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace demo {

using namespace flatstep::cuda;

namespace {

constexpr int kThreads = 128;

struct Partial {
  double of_warp[kThreads / kWarp];
  bool is_last;
};

__global__ void __launch_bounds__(kThreads)
    row_sums_kernel(const float* __restrict__ x, int columns, float* __restrict__ sums) {
  auto& shared = shared_memory<Partial>();
  const float* row = x + static_cast<std::int64_t>(blockIdx.x) * columns;
  double sum = 0;
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    sum += load_streaming(row + column);
  }
  sum = block_sum(sum, shared.of_warp);
  if (threadIdx.x == 0) sums[blockIdx.x] = static_cast<float>(sum);
}

__global__ void __launch_bounds__(kThreads)
    last_block_kernel(const float* __restrict__ x, std::int64_t size, double* partial,
                      unsigned* ticket, double* result) {
  auto& shared = shared_memory<Partial>();
  double sum = 0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < size;
       i += stride) {
    sum += __ldg(x + i);
  }
  sum = block_sum(sum, shared.of_warp);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    shared.is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.is_last || threadIdx.x != 0) return;
  __threadfence();
  double total = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) total += __ldcg(partial + block);
  *result = total;
}

struct RowPart {
  float of_warp[kThreads / kWarp];
  double sum_of_warp[kThreads / kWarp];
  float maximum;
  double sum;
};

__global__ void __launch_bounds__(kThreads)
    cluster_softmax_kernel(const float* __restrict__ x, int columns, float* __restrict__ y) {
  auto& shared = shared_memory<RowPart>();
  const int rank = cluster_rank(), size = cluster_size();
  const std::int64_t row = blockIdx.x / size;
  const int first = static_cast<int>(threadIdx.x) + rank * kThreads, step = kThreads * size;

  float maximum = -INFINITY;
  for (int column = first; column < columns; column += step) {
    maximum = fmaxf(maximum, x[row * columns + column]);
  }
  maximum = block_max(maximum, shared.of_warp);
  if (threadIdx.x == 0) shared.maximum = maximum;
  cluster_sync();
  for (int other = 0; other < size; ++other) {
    maximum = fmaxf(maximum, cluster_read(shared.maximum, other));
  }

  double sum = 0;
  constexpr float kLog2E = 1.44269504f;
  for (int column = first; column < columns; column += step) {
    sum += exp2_approx((x[row * columns + column] - maximum) * kLog2E);
  }
  sum = block_sum(sum, shared.sum_of_warp);
  if (threadIdx.x == 0) shared.sum = sum;
  cluster_sync();
  sum = 0;
  for (int other = 0; other < size; ++other) sum += cluster_read(shared.sum, other);

  const float scale = static_cast<float>(1 / sum);
  for (int column = first; column < columns; column += step) {
    const std::int64_t i = row * columns + column;
    store_streaming(y + i, exp2_approx((x[i] - maximum) * kLog2E) * scale);
  }
  cluster_arrive();  // by now the others' sums are read
  cluster_wait();
}

template <class T>
__device__ unsigned scaled(unsigned pair, float factor) {
  float low, high;
  to_floats<T>(pair, low, high);
  return from_floats<T>(low * factor, high * factor);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(uint4* x, std::int64_t words, float factor) {
  const std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (i >= words) return;
  prefetch(x + i);
  uint4 word = load_streaming(x + i);
  word.x = scaled<T>(word.x, factor);
  word.y = scaled<T>(word.y, factor);
  word.z = scaled<T>(word.z, factor);
  word.w = scaled<T>(word.w, factor);
  store_streaming(x + i, word);
}

__global__ void exchanges_kernel(const int* x, long long* results) {
  const int mine = x[threadIdx.x];
  long long* to = results + threadIdx.x * 12;
  const unsigned half = lane() < 16 ? 0x0000ffffu : 0xffff0000u;
  to[0] = __shfl_sync(kAllLanes, mine, 5);
  to[1] = __shfl_up_sync(kAllLanes, mine, 3);
  to[2] = __shfl_down_sync(kAllLanes, mine, 4, 8);
  to[3] = __shfl_xor_sync(half, static_cast<long long>(mine) << 32, 9);
  to[4] = static_cast<long long>(__shfl_down_sync(half, static_cast<double>(mine), 1, 16));
  to[5] = static_cast<long long>(__shfl_sync(kAllLanes, static_cast<float>(mine), 3, 4));
  to[6] = __ballot_sync(half, mine % 2);
  to[7] = __any_sync(half, mine == 0);
  to[8] = __all_sync(half, mine >= 16);
  __syncwarp(half);
  to[9] = warp_max(static_cast<unsigned>(mine));
  to[10] = static_cast<long long>(warp_sum(static_cast<float>(mine)));
  to[11] = __umulhi(static_cast<unsigned>(mine), 0x80000000u);
}

unsigned blocks_of(std::int64_t size) {
  return static_cast<unsigned>((size + kThreads - 1) / kThreads);
}

}  // namespace

void row_sums(const float* x, int rows, int columns, float* sums, cudaStream_t stream) {
  launch(row_sums_kernel, {static_cast<unsigned>(rows), kThreads, sizeof(Partial)}, stream, x,
         columns, sums);
}

void sum_by_last_block(const float* x, std::int64_t size, unsigned blocks, double* partial,
                       unsigned* ticket, double* sum, cudaStream_t stream) {
  launch(last_block_kernel, {blocks, kThreads, sizeof(Partial)}, stream, x, size, partial, ticket,
         sum);
}

void cluster_softmax(const float* x, int rows, int columns, unsigned cluster, float* y,
                     cudaStream_t stream) {
  launch(cluster_softmax_kernel,
         {static_cast<unsigned>(rows) * cluster, kThreads, sizeof(RowPart), cluster}, stream, x,
         columns, y);
}

void scale(std::uint16_t* x, bool is_bf16, std::int64_t size, float factor, cudaStream_t stream) {
  launch(is_bf16 ? scale_kernel<bf16_bits> : scale_kernel<f16_bits>,
         {blocks_of(size / 8), kThreads}, stream, reinterpret_cast<uint4*>(x), size / 8, factor);
}

void exchanges(const int* x, long long* results, cudaStream_t stream) {
  launch(exchanges_kernel, {1, kWarp}, stream, x, results);
}

}  // namespace demo
