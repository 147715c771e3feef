// The threads that share a row, a block or a cluster of blocks, and what they tell each other.
#pragma once

#include "cuda/cluster.h"
#include "cuda/cross_entropy_finish.h"

namespace flatstep::cuda {
namespace {

// Two blocks of the kernel that holds most fit the registers of a multiprocessor: while one waits,
// the other goes on.
constexpr int kThreads = 256;

struct RowMemory {
  float warp_maximum[kThreads / kWarp];
  float block_maximum;
  std::int32_t ties;
  PartSums warp_sums[kThreads / kWarp];
  PartSums block_sums;
  CrossEntropyBlock block;  // of the stretches so far; the first thread's
  FinishedRow row;
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

__device__ __forceinline__ PartSums read_sums(const PartSums& mine, int rank) {
  return {cluster_read(mine.rest, rank),   cluster_read(mine.weighted, rank),
          cluster_read(mine.logits, rank), cluster_read(mine.allowed, rank),
          cluster_read(mine.tops, rank),   cluster_read(mine.unmasked, rank)};
}

// The sums over the cluster, for the first thread of each block.
__device__ __forceinline__ PartSums cluster_sum(const PartSums& part, RowMemory& memory) {
  const PartSums of_warp = sum_over_warp(part);
  if (lane() == 0) memory.warp_sums[warp()] = of_warp;
  __syncthreads();
  PartSums sums{};
  if (warp() == 0) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    sums = sum_over_warp(lane() < warps ? memory.warp_sums[lane()] : PartSums{});
  }
  if (cluster_size() == 1) return sums;
  if (threadIdx.x == 0) memory.block_sums = sums;
  cluster_sync();
  if (threadIdx.x != 0) return sums;
  sums = {};
  for (int rank = 0; rank < cluster_size(); ++rank) add(read_sums(memory.block_sums, rank), sums);
  return sums;
}

// Whether none of the row's classes before the target has the target's logit. A rare question: the
// row is read again, before any of it is overwritten.
__device__ __noinline__ bool is_first_of_largest(const CrossEntropyRows& rows, const Row& row,
                                                 RowMemory& memory) {
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
  // The counters are set again in another row, after for_each_row's barrier.
  return ties == 0;
}

// Zeros where a row is ignored, or where nothing can be computed.
__device__ __forceinline__ void clear_gradient(const CrossEntropyRows& rows, std::int64_t row) {
  if (rows.grad == nullptr) return;
  void* gradient = gradient_of(rows, row);
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * cluster_size();
  for (std::int64_t j = threadIdx.x + static_cast<std::int64_t>(blockDim.x) * cluster_rank();
       j < rows.classes; j += stride) {
    store_element(gradient, rows.grad_dtype, j, 0.0f);
  }
}

// The loss of a finished row, for the totals. Every thread calls this before the gradient is
// written.
__device__ __forceinline__ void store_row_loss(const CrossEntropyRows& rows, const Row& row,
                                               RowLoss* row_losses, RowMemory& memory) {
  bool correct = memory.row.correct != 0;
  if (memory.row.several) correct = is_first_of_largest(rows, row, memory);
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    row_losses[row.index] = {memory.row.loss, correct ? 1 : 0};
  }
}

// Rows that are launched at a time; more go round.
constexpr std::int64_t kMostRows = 1 << 20;

// visit(row) for the rows of this cluster that are not ignored; the others are done here.
template <class Visit>
__device__ __forceinline__ void for_each_row(const CrossEntropyRows& rows, const LossTotals& totals,
                                             RowLoss* row_losses, const Visit& visit) {
  const bool fault = totals.fault != LossFault::none;
  if (fault && !rows.zero_at_fault) return;
  const auto blocks = static_cast<unsigned>(cluster_size());
  for (std::int64_t i = blockIdx.x / blocks; i < rows.rows; i += gridDim.x / blocks) {
    const std::int64_t target = target_of(rows, i);
    if (fault || target < 0) {
      clear_gradient(rows, i);
      if (!fault && cluster_rank() == 0 && threadIdx.x == 0) {
        store_rows(rows, i, 0.0, 0.0, 0.0);
        row_losses[i] = {0.0, 0};
      }
      continue;
    }
    visit(Row{i, target, load_element(logits_of(rows, i), rows.dtype, target)});
    // The next row takes the memory that others of the cluster may still read.
    cluster_sync();
  }
}

}  // namespace
}  // namespace flatstep::cuda
