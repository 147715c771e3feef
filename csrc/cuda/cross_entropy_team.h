// The threads that share a row, a block or a cluster of blocks, and what they tell each other.
#pragma once

#include "cuda/cluster.h"
#include "cuda/cross_entropy_finish.h"

namespace flatstep::cuda {
namespace {

struct alignas(16) RowMemory {
  float warp_maximum[kMostThreads / kWarp];
  float part_maximum[kMostParts];
  PartSums warp_sums[kMostThreads / kWarp];
  Row row;
  RowTarget<double> target;
  RowRecord record, stretch;  // the first thread's: of the stretches so far, and of one more
  RowScale scale;
  std::int32_t ties;
};

// Those of another block.
template <Sums kSums>
__device__ __forceinline__ PartSums read_sums(const PartSums& mine, int rank) {
  return with_each<kSums>(mine, [&](const auto& sum) { return cluster_read(sum, rank); });
}

// The records of parts, a lane each, as one, for every lane.
template <Sums kSums>
__device__ __forceinline__ RowRecord merge_lanes(const RowRecord& part) {
  RowRecord whole{};
  whole.largest = warp_max(part.largest);
  RowSums<double> sums = empty_row(block_of(whole));
  add_block(block_of(part), sums);
  whole.tops = warp_sum(sums.tops);
  whole.rest = warp_sum(sums.rest);
  if (kSums != Sums::exponentials) whole.weighted = warp_sum(sums.weighted);
  if (kSums == Sums::all) {
    whole.logits = warp_sum(sums.logits);
    whole.allowed = warp_sum(sums.allowed);
    whole.unmasked = warp_sum(part.unmasked);
  }
  return whole;
}

// What the cluster has summed up, in parts of some warps each; for the lanes of a block's first
// warp.
template <Sums kSums>
__device__ __forceinline__ RowRecord record_of_stretch(const RowMemory& memory, int log_parts,
                                                       int log_warps) {
  const int rank = lane() >> log_parts, part = lane() - (rank << log_parts);
  const int all = cluster_size() << log_parts;
  float largest = -kInfinite<float>;
  PartSums sums{};
  if (lane() < all) {
    largest = cluster_read(memory.part_maximum[part], rank);
    for (int i = 0; i < 1 << log_warps; ++i) {
      add(read_sums<kSums>(memory.warp_sums[(part << log_warps) + i], rank), sums);
    }
  }
  const RowRecord record = record_of(sums, largest);
  if (all == 1) return record;
  return merge_lanes<kSums>(record);
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

// What the first thread needs later, while the row is on its way.
__device__ __forceinline__ void begin_row(const CrossEntropyRows& rows, const LossTotals& totals,
                                          std::int64_t index, std::int64_t target,
                                          RowMemory& memory) {
  if (threadIdx.x != 0) return;
  memory.row = {index, target, load_element(logits_of(rows, index), rows.dtype, target)};
  memory.target = target_in(rows, totals.factor, memory.row);
}

}  // namespace
}  // namespace flatstep::cuda
