// Rows of cross-entropy with their gradient, a block or a cluster of blocks for each row. The row
// is read once and stays in registers, the logits first, then their exponentials, then the
// gradient; only what does not fit there is read again.
#include "cuda/cross_entropy.h"

#include <algorithm>

#include "cuda/cross_entropy_team.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

// The pairs of this thread in stretch `number` of a row: what the cluster holds at a time, shared
// by its blocks as evenly as whole rounds of the block's threads allow.
template <int kPairs>
__device__ __forceinline__ Pairs<kThreads, kPairs> pairs_of(int classes, int number) {
  const int blocks = cluster_size();
  const int begin = number * 2 * kPairs * kThreads * blocks;
  const int left = classes - begin;
  const int round = 2 * kThreads * blocks;
  int each = (left + round - 1) / round * 2 * kThreads;
  if (each > 2 * kPairs * kThreads) each = 2 * kPairs * kThreads;
  const int block_begin = cluster_rank() * each;
  const int of_block = left - block_begin < each ? left - block_begin : each;
  const int place = 2 * static_cast<int>(threadIdx.x);
  return {begin + block_begin + place, of_block - place, of_block};
}

template <bool kSmooth, int kPairs>
__device__ __forceinline__ void row_of(const CrossEntropyRows& rows, const LossTotals& totals,
                                       const Row& row, RowLoss* row_losses, RowMemory& memory) {
  const void* logits = logits_of(rows, row.index);
  const auto* weights = static_cast<const float*>(rows.class_weight);
  const int classes = static_cast<int>(rows.classes);
  const int stretch = 2 * kPairs * kThreads * cluster_size();
  const int stretches = (classes + stretch - 1) / stretch;
  // Every stretch is summed; the gradient begins with the last, which is still there.
  const int visits = 2 * stretches - 1;
  for (int visit = 0; visit < visits; ++visit) {
    const bool again = visit >= stretches;
    const Pairs<kThreads, kPairs> pairs =
        pairs_of<kPairs>(classes, again ? visit - stretches : visit);
    float x[2 * kPairs];
    load_slice(logits, rows.dtype, classes, pairs, x);
    const float own = largest_of(pairs, x);
    const float maximum = again ? memory.row.maximum : cluster_maximum(own, memory);
    const SliceUnit unit(maximum);
    const PartSums part = sum_slice<kSmooth>(x, unit, own, weights, pairs);
    if (!again) {
      const PartSums sums = cluster_sum(part, memory);
      if (threadIdx.x == 0) {
        const CrossEntropyBlock block = block_of(sums, maximum, unit);
        memory.block = visit == 0 ? block : merged(memory.block, block);
        if (visit == stretches - 1) {
          const float top = top_of(static_cast<float>(memory.block.largest));
          memory.row = finish(rows, totals, row, memory.block, top, cluster_rank() == 0);
        }
      }
      if (visit < stretches - 1) continue;
      __syncthreads();
      store_row_loss(rows, row, row_losses, memory);
      if (rows.grad == nullptr) break;
    }
    const FinishedRow& finished = memory.row;
    const double ratio =
        again ? 1.0 : unit_ratio(block_of({}, maximum, unit), finished.shift, finished.exponent);
    gradient_slice<kSmooth>(x, factors_of(finished, ratio), weights, pairs);
    void* gradient = gradient_of(rows, row.index);
    store_slice(gradient, rows.grad_dtype, classes, pairs, x);
    // Once more by the thread that has just written the target's class.
    if (pairs.pair_of(row.target) >= 0 && !finished.weightless && !finished.invalid) {
      store_element(gradient, rows.grad_dtype, row.target, finished.at_target);
    }
  }
}

template <bool kSmooth, int kPairs>
__global__ void __launch_bounds__(kThreads, kPairs == 8 ? 3 : 2)
    rows_kernel(const __grid_constant__ CrossEntropyRows rows, const LossTotals* totals,
                RowLoss* row_losses) {
  RowMemory& memory = shared_memory<RowMemory>();
  for_each_row(rows, *totals, row_losses, [&](const Row& row) {
    row_of<kSmooth, kPairs>(rows, *totals, row, row_losses, memory);
  });
}

static_assert(kFewClasses == 2 * 8 * kThreads && kManyClasses == 2 * 32 * kThreads, "row_shape");

}  // namespace

void launch_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowLoss* row_losses,
                 const RowShape& shape, cudaStream_t stream) {
  const auto cluster = static_cast<unsigned>(shape.cluster);
  const auto grid = static_cast<unsigned>(std::min(rows.rows, kMostRows)) * cluster;
  const bool smooth = rows.label_smoothing > 0;
  const auto kernel = shape.pairs == 8 ? (smooth ? rows_kernel<true, 8> : rows_kernel<false, 8>)
                                       : (smooth ? rows_kernel<true, 32> : rows_kernel<false, 32>);
  launch(kernel, {grid, kThreads, sizeof(RowMemory), cluster}, stream, rows, totals, row_losses);
}

}  // namespace flatstep::cuda
