// Rows of cross-entropy with their gradient, a block or a cluster of blocks for each row. The row
// is read once and stays in shared memory until its gradient is written; only what does not fit
// there is read again.
#include "cuda/cross_entropy.h"

#include <algorithm>

#include "cuda/cross_entropy_stage.h"
#include "cuda/cross_entropy_team.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

// Classes [first, first + count) that a block has of a stretch of the row, what the cluster holds
// at a time: shared by its blocks as evenly as whole tiles allow.
struct Part {
  int first, count;
};

__device__ __forceinline__ Part part_of(int classes, int most_tiles, int number) {
  const int blocks = cluster_size(), tile = 2 * static_cast<int>(blockDim.x);
  const int begin = number * most_tiles * tile * blocks;
  const int needed = (classes - begin + tile * blocks - 1) / (tile * blocks);
  const int each = (needed < most_tiles ? needed : most_tiles) * tile;
  const int first = begin + cluster_rank() * each;
  const int left = classes - first;
  return {first, left < 0 ? 0 : left < each ? left : each};
}

// One row's way through the kernel.
template <class T, bool kSmooth>
struct RowPass {
  const CrossEntropyRows& rows;
  RowMemory& memory;
  int tiles;

  __device__ __forceinline__ int classes() const { return static_cast<int>(rows.classes); }
  __device__ __forceinline__ Part part(int number) const {
    return part_of(classes(), tiles, number);
  }
  __device__ __forceinline__ const float* weights_of(const Part& part) const {
    const auto* weights = static_cast<const float*>(rows.class_weight);
    return weights == nullptr ? nullptr : weights + part.first;
  }

  // Begins to copy; wait() before it is used.
  __device__ __forceinline__ StagedSlice<T> stage(std::int64_t row, const Part& part) const {
    const T* from = static_cast<const T*>(logits_of(rows, row)) + part.first;
    return StagedSlice<T>(from, part.count, behind(memory));
  }
  static __device__ __forceinline__ void wait() {
    wait_for_copies();
    __syncthreads();
  }

  // The sums of a stretch, for the first thread.
  __device__ __forceinline__ RowRecord sum(const StagedSlice<T>& slice, const Part& part) const {
    const float own = largest_of(slice);
    const float maximum = cluster_maximum(own, memory);
    const SliceUnit unit(maximum);
    const PartSums sums =
        cluster_sum<kSmooth>(sum_slice<kSmooth>(slice, unit, own, weights_of(part)), memory);
    return record_of(sums, maximum);
  }

  __device__ __forceinline__ void write(std::int64_t row, const StagedSlice<T>& slice,
                                        const Part& part) const {
    const SliceUnit unit(memory.scale.maximum);
    const auto write_type = [&](auto* type) {
      auto* to = static_cast<decltype(type)>(gradient_of(rows, row)) + part.first;
      write_gradient<kSmooth>(slice, unit, factors_of(memory.scale), weights_of(part), to);
    };
    // Only f32 logits have a gradient of another type.
    if constexpr (std::is_same<T, float>::value) {
      with_type(rows.grad_dtype, write_type);
    } else {
      write_type(static_cast<T*>(nullptr));
    }
  }

  // Every stretch is summed; the gradient begins with the last, which is still there. The first has
  // been staged.
  __device__ __forceinline__ void run(StagedSlice<T> slice, Part own, std::int64_t row,
                                      RowRecord* records) const {
    const int stretch = 2 * tiles * static_cast<int>(blockDim.x) * cluster_size();
    const int last = (classes() - 1) / stretch;
    for (int number = 0;; ++number) {
      wait();
      const RowRecord record = sum(slice, own);
      if (threadIdx.x == 0) {
        (number == 0 ? memory.record : memory.stretch) = record;
        if (number > 0) merge(memory.record, memory.stretch);
        if (number == last) {
          memory.scale = scale_of(rows, memory.factor, memory.row, memory.record);
        }
      }
      __syncthreads();
      if (number == last) break;
      own = part(number + 1);
      slice = stage(row, own);
    }
    const bool correct = target_is_first(rows, memory);
    if (threadIdx.x == 0 && cluster_rank() == 0) {
      store_record(memory.record, memory.row, correct, records);
    }
    if (rows.grad == nullptr) return;
    write(row, slice, own);
    for (int number = 0; number < last; ++number) {
      __syncthreads();  // the slice is free
      own = part(number);
      slice = stage(row, own);
      wait();
      write(row, slice, own);
    }
  }
};

template <class T, bool kSmooth>
__global__ void __launch_bounds__(kMostThreads, 4)
    rows_kernel(const __grid_constant__ CrossEntropyRows rows, const LossTotals* totals,
                RowRecord* records, int tiles) {
  const RowPass<T, kSmooth> pass{rows, shared_memory<RowMemory>(), tiles};
  const auto blocks = static_cast<unsigned>(cluster_size());
  const Part part = pass.part(0);
  for (std::int64_t row = blockIdx.x / blocks; row < rows.rows; row += gridDim.x / blocks) {
    // What is read of the totals and targets arrives beside the row, which most often is needed.
    const StagedSlice<T> slice = pass.stage(row, part);
    const bool fault = totals->fault != LossFault::none;
    const std::int64_t target = target_of(rows, row);
    if (fault || target < 0) {
      wait_for_copies();
      cluster_sync();  // the gradient may lie where others copy from
      if (!fault || rows.zero_at_fault) clear_gradient(rows, row);
    } else {
      begin_row(rows, *totals, row, target, pass.memory);
      pass.run(slice, part, row, records);
    }
    // The next row takes the memory that others of the cluster may still read.
    cluster_sync();
  }
}

template <class T>
void launch_rows_of(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                    const RowShape& shape, cudaStream_t stream, std::int64_t most_rows) {
  const auto cluster = static_cast<unsigned>(shape.cluster);
  const auto grid = static_cast<unsigned>(std::min(rows.rows, most_rows)) * cluster;
  const std::size_t room = static_cast<std::size_t>(2 * shape.threads * shape.tiles) * sizeof(T);
  const std::size_t shared = sizeof(RowMemory) + kWordBytes + room;
  launch(rows.label_smoothing > 0 ? rows_kernel<T, true> : rows_kernel<T, false>,
         {grid, static_cast<unsigned>(shape.threads), shared, cluster}, stream, rows, totals,
         records, shape.tiles);
}

}  // namespace

void launch_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                 const RowShape& shape, cudaStream_t stream, std::int64_t most_rows) {
  if (rows.dtype == DType::f32) {
    launch_rows_of<float>(rows, totals, records, shape, stream, most_rows);
  } else if (rows.dtype == DType::bf16) {
    launch_rows_of<bf16_bits>(rows, totals, records, shape, stream, most_rows);
  } else {
    launch_rows_of<f16_bits>(rows, totals, records, shape, stream, most_rows);
  }
}

}  // namespace flatstep::cuda
