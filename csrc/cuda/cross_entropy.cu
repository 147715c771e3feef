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

// Classes [first, first + count) of a row, what a block holds at a time.
struct Slice {
  int first, count;
};

// A RowShape for the kernel, which does not divide.
struct RowCut {
  int log_warps, log_parts, tiles;
  int stretches;  // of a row, what a cluster holds at a time
};

// One row's way through the kernel.
template <class T, Sums kSums>
struct RowPass {
  static constexpr bool kSmooth = kSums == Sums::all;

  const CrossEntropyRows& rows;
  RowMemory& memory;
  RowCut cut;

  // Of a block, at most.
  __device__ __forceinline__ int room() const {
    return static_cast<int>(blockDim.x) * cut.tiles * (RowShape::kTile / kWarp);
  }
  __device__ __forceinline__ Slice slice_of(int stretch) const {
    const int first = (stretch * cluster_size() + cluster_rank()) * room();
    const int left = static_cast<int>(rows.classes) - first;
    return {first, left < 0 ? 0 : left < room() ? left : room()};
  }
  __device__ __forceinline__ const float* weights_of(const Slice& slice) const {
    const auto* weights = static_cast<const float*>(rows.class_weight);
    return weights == nullptr ? nullptr : weights + slice.first;
  }

  // Begins to copy; wait() before it is used.
  __device__ __forceinline__ StagedSlice<T> stage(std::int64_t row, const Slice& slice) const {
    const T* from = static_cast<const T*>(rows.logits) + row * rows.row_stride + slice.first;
    return StagedSlice<T>(from, slice.count, behind(memory));
  }
  static __device__ __forceinline__ void wait() {
    wait_for_copies();
    __syncthreads();
  }

  // Leaves each warp's sums, in the unit of its part, for the cluster to read.
  __device__ __forceinline__ void sum(const StagedSlice<T>& staged, const Slice& slice) const {
    const WarpTiles own(staged, cut.tiles);
    const float largest = largest_of(staged, own);
    const float of_warp = warp_max(largest);
    if (lane() == 0) memory.warp_maximum[warp()] = of_warp;
    __syncthreads();
    const int part = warp() >> cut.log_warps, first = part << cut.log_warps;
    const float maximum = warp_max(
        lane() >> cut.log_warps == 0 ? memory.warp_maximum[first + lane()] : -kInfinite<float>);
    const PartSums sums = sum_over_warp<kSums>(
        sum_slice<kSums>(staged, own, SliceUnit(maximum), largest, weights_of(slice)));
    if (lane() == 0) {
      memory.warp_sums[warp()] = sums;
      if (warp() == first) memory.part_maximum[part] = maximum;
    }
    cluster_sync();
  }

  __device__ __forceinline__ void write(const StagedSlice<T>& staged, const Slice& slice) const {
    const std::int64_t first = memory.row.index * rows.grad_row_stride + slice.first;
    const SliceUnit unit(memory.scale.maximum);
    const auto write_type = [&](auto* type) {
      auto* to = static_cast<decltype(type)>(rows.grad) + first;
      write_gradient<kSmooth>(staged, unit, factors_of(memory.scale), weights_of(slice), to);
    };
    // Only f32 logits have a gradient of another type.
    if constexpr (std::is_same<T, float>::value) {
      with_type(rows.grad_dtype, write_type);
    } else {
      write_type(static_cast<T*>(nullptr));
    }
  }

  // Every stretch, what the cluster holds at a time, is summed; the gradient begins with the last,
  // which is still there. The first has been staged. Ends with the first half of a barrier of the
  // cluster.
  __device__ __forceinline__ void run(StagedSlice<T> staged, Slice own, RowRecord* records) const {
    const int last = cut.stretches - 1;
    for (int number = 0;; ++number) {
      wait();
      sum(staged, own);
      if (warp() == 0) {
        const RowRecord record = record_of_stretch<kSums>(memory, cut.log_parts, cut.log_warps);
        if (lane() == 0) {
          (number == 0 ? memory.record : memory.stretch) = record;
          if (number > 0) merge(memory.record, memory.stretch);
          if (number == last) {
            memory.scale = scale_of(rows, memory.target, memory.record);
          }
        }
      }
      if (number == last) break;
      cluster_sync();  // the sums are read
      own = slice_of(number + 1);
      staged = stage(memory.row.index, own);
    }
    __syncthreads();
    const bool correct = target_is_first(rows, memory);
    cluster_arrive();
    if (threadIdx.x == 0 && cluster_rank() == 0) {
      store_record(memory.record, memory.row, correct, records);
    }
    if (rows.grad == nullptr) return;
    for (int number = 0;; ++number) {
      write(staged, own);
      if (number == last) break;
      __syncthreads();  // the slice is free
      own = slice_of(number);
      staged = stage(memory.row.index, own);
      wait();
    }
  }
};

// With label smoothing more registers are alive than two blocks of so many threads have.
template <class T, Sums kSums>
__global__ void __launch_bounds__(kMostThreads, kSums == Sums::all ? 1 : 2)
    rows_kernel(const __grid_constant__ CrossEntropyRows rows, const LossTotals* totals,
                RowRecord* records, const __grid_constant__ RowCut cut) {
  const RowPass<T, kSums> pass{rows, shared_memory<RowMemory>(), cut};
  const Slice slice = pass.slice_of(0);
  for (std::int64_t row = cluster_index(); row < rows.rows; row += cluster_count()) {
    // What is read of the totals and targets arrives beside the row, which most often is needed.
    const StagedSlice<T> staged = pass.stage(row, slice);
    const bool fault = totals->fault != LossFault::none;
    const std::int64_t target = target_of(rows, row);
    if (fault || target < 0) {
      wait_for_copies();
      cluster_sync();  // the gradient may lie where others copy from
      cluster_arrive();
      if (!fault || rows.zero_at_fault) clear_gradient(rows, row);
    } else {
      begin_row(rows, *totals, row, target, pass.memory);
      pass.run(staged, slice, records);
    }
    // The next row takes the memory that others of the cluster, and then of the block, may still
    // read.
    cluster_wait();
    __syncthreads();
  }
}

// Calls body with the sums that a call needs, as a constant.
template <class Body>
void with_sums(const CrossEntropyRows& rows, const Body& body) {
  if (rows.label_smoothing > 0) {
    body(std::integral_constant<Sums, Sums::all>());
  } else if (rows.entropy != nullptr) {
    body(std::integral_constant<Sums, Sums::entropy>());
  } else {
    body(std::integral_constant<Sums, Sums::exponentials>());
  }
}

// Of a power of two.
int log2_of(int power) {
  int log = 0;
  while (1 << log < power) ++log;
  return log;
}

template <class T>
void launch_rows_of(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                    const RowShape& shape, cudaStream_t stream, std::int64_t most_rows) {
  const auto cluster = static_cast<unsigned>(shape.cluster);
  const auto grid = static_cast<unsigned>(std::min(rows.rows, most_rows)) * cluster;
  const std::size_t room = static_cast<std::size_t>(shape.classes_of_block()) * sizeof(T);
  const std::size_t shared = sizeof(RowMemory) + kWordBytes + room;
  const std::int64_t stretch = shape.cluster * shape.classes_of_block();
  const RowCut cut{log2_of(shape.warps), log2_of(shape.parts), shape.tiles,
                   static_cast<int>((rows.classes + stretch - 1) / stretch)};
  with_sums(rows, [&](auto sums) {
    launch(rows_kernel<T, sums.value>,
           {grid, static_cast<unsigned>(shape.threads()), shared, cluster}, stream, rows, totals,
           records, cut);
  });
}

// The greatest power of two up to a limit that is one at least.
int power_of_two_in(std::int64_t limit) {
  int power = 1;
  while (2 * power <= limit) power *= 2;
  return power;
}

}  // namespace

RowShape row_shape(std::int64_t classes, std::size_t element_bytes, int largest_cluster,
                   std::int64_t shared_bytes) {
  // Two blocks of so many bytes fit a multiprocessor with 228 KB (sm_90, sm_100).
  constexpr std::int64_t kBlockBytes = 104 << 10;
  constexpr std::int64_t kBeside = sizeof(RowMemory) + kWordBytes;
  const std::int64_t room = shared_bytes - kBeside;
  const auto blocks = [](std::int64_t size, std::int64_t block) {
    return (size + block - 1) / block;
  };
  // What a block can hold of a part in f32.
  const std::int64_t most = std::min(kPartClasses, room / 1024 * 256);
  std::int64_t parts = 1;
  while (parts < kClusterParts && classes > most * parts) parts *= 2;
  const std::int64_t each = std::min(most, blocks(classes, parts));
  RowShape shape{1, 1, each <= 2048 ? 1 : each <= 8192 ? 2 : 4, 0};
  shape.tiles = static_cast<int>(blocks(each, std::int64_t{RowShape::kTile} * shape.warps));
  const std::int64_t part = shape.classes_of_block();
  const auto held = [&](std::int64_t bytes, std::size_t element) {
    const std::int64_t fit = bytes / (part * static_cast<std::int64_t>(element));
    return power_of_two_in(std::min({fit, parts, std::int64_t{kMostParts}}));
  };
  // Stretches are those of f32 for all types.
  const int most_held = held(room, sizeof(float));
  if (parts > std::int64_t{most_held} * largest_cluster || classes > part * parts) {
    shape.parts = most_held;
    shape.cluster = static_cast<int>(std::min<std::int64_t>(largest_cluster, parts / most_held));
    return shape;
  }
  shape.parts = held(std::min(room, kBlockBytes), element_bytes);
  while (std::int64_t{shape.parts} * largest_cluster < parts) shape.parts *= 2;
  shape.cluster = static_cast<int>(parts) / shape.parts;
  return shape;
}

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
