// The threads that share a row, a block or a cluster of blocks, and what they tell each other.
#pragma once

#include "cuda/cluster.h"
#include "cuda/cross_entropy_finish.h"

namespace flatstep::cuda {
namespace {

// Of a block, at most.
constexpr int kMostThreads = 256;

struct alignas(16) RowMemory {
  float warp_maximum[kMostThreads / kWarp];
  float block_maximum;
  std::int32_t ties;
  PartSums warp_sums[kMostThreads / kWarp];
  PartSums block_sums;
  Row row;
  double factor;              // of the reduction
  RowRecord record, stretch;  // the first thread's: of the stretches so far, and of one more
  RowScale scale;
};

// The largest of all threads of the cluster.
__device__ __forceinline__ float cluster_maximum(float value, RowMemory& memory) {
  value = block_max(value, memory.warp_maximum);
  if (cluster_size() == 1) return value;
  if (threadIdx.x == 0) memory.block_maximum = value;
  cluster_sync();
  const int rank = lane();
  return warp_max(rank < cluster_size() ? cluster_read(memory.block_maximum, rank)
                                        : -kInfinite<float>);
}

template <bool kSmooth>
__device__ __forceinline__ PartSums read_sums(const PartSums& mine, int rank) {
  PartSums sums{};
  sums.rest = cluster_read(mine.rest, rank);
  sums.weighted = cluster_read(mine.weighted, rank);
  sums.tops = cluster_read(mine.tops, rank);
  if (kSmooth) {
    sums.unmasked = cluster_read(mine.unmasked, rank);
    sums.logits = cluster_read(mine.logits, rank);
    sums.allowed = cluster_read(mine.allowed, rank);
  }
  return sums;
}

// The sums over the cluster, for the first thread of each block.
template <bool kSmooth>
__device__ __forceinline__ PartSums cluster_sum(const PartSums& part, RowMemory& memory) {
  const PartSums of_warp = sum_over_warp<kSmooth>(part);
  if (lane() == 0) memory.warp_sums[warp()] = of_warp;
  __syncthreads();
  PartSums sums{};
  if (warp() == 0) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    sums = sum_over_warp<kSmooth>(lane() < warps ? memory.warp_sums[lane()] : PartSums{});
  }
  if (cluster_size() == 1) return sums;
  if (threadIdx.x == 0) memory.block_sums = sums;
  cluster_sync();
  if (threadIdx.x != 0) return sums;
  sums = {};
  for (int rank = 0; rank < cluster_size(); ++rank) {
    add(read_sums<kSmooth>(memory.block_sums, rank), sums);
  }
  return sums;
}

// Whether none of the row's classes before the target has the target's logit. A rare question: the
// row is read again, before any of it is overwritten. (What a function takes by reference every
// thread would have to write to memory, which costs as much bandwidth as the row.)
__device__ __noinline__ bool is_first_of_largest(const CrossEntropyRows& rows, RowMemory& memory) {
  const Row row = memory.row;
  const void* logits = logits_of(rows, row.index);
  int ties = 0;
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * cluster_size();
  for (std::int64_t j = threadIdx.x + static_cast<std::int64_t>(blockDim.x) * cluster_rank();
       j < row.target; j += stride) {
    ties += load_element(logits, rows.dtype, j) == row.target_logit ? 1 : 0;
  }
  if (threadIdx.x == 0) memory.ties = 0;
  __syncthreads();
  ties = warp_sum(ties);
  if (lane() == 0)
    atomicAdd(reinterpret_cast<unsigned*>(&memory.ties), static_cast<unsigned>(ties));
  cluster_sync();  // all of the row is read, too
  ties = 0;
  for (int rank = 0; rank < cluster_size(); ++rank) ties += cluster_read(memory.ties, rank);
  // The counters are set again in another row, behind its first barriers.
  return ties == 0;
}

// Zeros where a row is ignored, or where nothing can be computed. Its part of each thread goes out
// in words of 16 bytes where the row has them.
__device__ __forceinline__ void clear_gradient(const CrossEntropyRows& rows, std::int64_t row) {
  if (rows.grad == nullptr) return;
  const std::int64_t first = threadIdx.x + static_cast<std::int64_t>(blockDim.x) * cluster_rank();
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * cluster_size();
  with_type(rows.grad_dtype, [&](auto* type) {
    using G = std::remove_pointer_t<decltype(type)>;
    G* to = static_cast<G*>(gradient_of(rows, row));
    const std::int64_t to_word = before_word(to);
    const std::int64_t head = to_word < rows.classes ? to_word : rows.classes;
    const std::int64_t words = (rows.classes - head) / kOfWord<G>;
    for (std::int64_t word = first; word < words; word += stride) {
      store_streaming(reinterpret_cast<uint4*>(to + head + word * kOfWord<G>), uint4{});
    }
    const std::int64_t behind = head + words * kOfWord<G>;
    if (first < head) to[first] = from_float<G>(0.0f);
    if (behind + first < rows.classes) to[behind + first] = from_float<G>(0.0f);
  });
}

// Whether the target is the first of the row's largest logits. Every thread calls this before the
// gradient is written.
__device__ __forceinline__ bool target_is_first(const CrossEntropyRows& rows, RowMemory& memory) {
  if (memory.scale.several) return is_first_of_largest(rows, memory);
  return memory.scale.correct != 0;
}

// Where the row's own block starts: what the first thread needs later, when others have the
// registers.
__device__ __forceinline__ void begin_row(const CrossEntropyRows& rows, const LossTotals& totals,
                                          std::int64_t index, std::int64_t target,
                                          RowMemory& memory) {
  if (threadIdx.x != 0) return;
  memory.row = {index, target, load_element(logits_of(rows, index), rows.dtype, target)};
  memory.factor = totals.factor;
}

}  // namespace
}  // namespace flatstep::cuda
