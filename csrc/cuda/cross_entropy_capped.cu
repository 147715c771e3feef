// Rows of cross-entropy under softcap, a block for each. Capped logits are computed in double, so
// this is bound by arithmetic and reads the row three times instead of keeping it.
#include <algorithm>

#include "cuda/cross_entropy_team.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

constexpr int kThreads = 256;

// One class: its exponential in units of that of the largest, and the slope of the cap.
struct Capped {
  double below, e, slope;
  bool masked;
};

__device__ __forceinline__ Capped capped_at(float x, const Softcap& softcap, double top) {
  Capped result;
  result.masked = x == -kInfinite<float>;
  const double y = cap(static_cast<double>(x), softcap, result.slope);
  result.below = result.masked ? 0.0 : y - top;
  result.e = result.masked ? 0.0 : scaled_exp(result.below, -708.0, std::uint64_t{1023});
  return result;
}

// visit(class) for those of this thread.
template <class Visit>
__device__ __forceinline__ void for_each_class(std::int64_t classes, const Visit& visit) {
  for (std::int64_t j = threadIdx.x; j < classes; j += blockDim.x) visit(j);
}

// The sums over the block, for the threads of its first warp.
__device__ __forceinline__ PartSums block_sums(const PartSums& part, RowMemory& memory) {
  const PartSums of_warp = sum_over_warp<Sums::all>(part);
  if (lane() == 0) memory.warp_sums[warp()] = of_warp;
  __syncthreads();
  if (warp() != 0) return {};
  constexpr int kWarps = kThreads / kWarp;
  return sum_over_warp<Sums::all>(lane() < kWarps ? memory.warp_sums[lane()] : PartSums{});
}

__device__ __forceinline__ RowRecord sum_row(const CrossEntropyRows& rows, const void* logits,
                                             float maximum, double top, RowMemory& memory) {
  const auto* weights = static_cast<const float*>(rows.class_weight);
  PartSums part{};
  for_each_class(rows.classes, [&](std::int64_t j) {
    const float x = load_element(logits, rows.dtype, j);
    const Capped y = capped_at(x, softcap_of(rows), top);
    if (x >= maximum) {
      ++part.tops;
    } else {
      part.rest += y.e;
    }
    part.weighted += y.e * y.below;
    if (y.masked) return;
    const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[j]);
    part.logits += weight * y.below;
    part.allowed += weight;
    ++part.unmasked;
  });
  const PartSums sums = block_sums(part, memory);
  RowRecord record{};
  record.tops = maximum == -kInfinite<float> ? 0.0 : sums.tops;
  record.rest = sums.rest;
  record.weighted = sums.weighted;
  record.logits = sums.logits;
  record.allowed = sums.allowed;
  record.largest = maximum;
  record.unmasked = sums.unmasked;
  return record;
}

__device__ __forceinline__ void write_gradient(const CrossEntropyRows& rows, std::int64_t row,
                                               double top, const RowScale& scale) {
  const void* logits = logits_of(rows, row);
  const auto* weights = static_cast<const float*>(rows.class_weight);
  const GradientFactors constant = factors_of(scale);
  void* gradient = gradient_of(rows, row);
  for_each_class(rows.classes, [&](std::int64_t j) {
    float value = constant.constant;
    if (!constant.is_constant) {
      const Capped y = capped_at(load_element(logits, rows.dtype, j), softcap_of(rows), top);
      const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[j]);
      const double result = (y.e * scale.factor - scale.spread * weight) * y.slope;
      value = y.masked ? 0.0f : static_cast<float>(result);
    }
    store_element(gradient, rows.grad_dtype, j, value);
  });
}

__global__ void __launch_bounds__(kThreads)
    capped_rows_kernel(const __grid_constant__ CrossEntropyRows rows, const LossTotals* totals,
                       RowRecord* records) {
  RowMemory& memory = shared_memory<RowMemory>();
  const bool fault = totals->fault != LossFault::none;
  for (std::int64_t row = blockIdx.x; row < rows.rows; row += gridDim.x) {
    const std::int64_t target = target_of(rows, row);
    if (fault || target < 0) {
      if (!fault || rows.zero_at_fault) clear_gradient(rows, row);
      continue;
    }
    begin_row(rows, *totals, row, target, memory);
    const void* logits = logits_of(rows, row);
    float maximum = -kInfinite<float>;
    for_each_class(rows.classes, [&](std::int64_t j) {
      maximum = fmaxf(maximum, load_element(logits, rows.dtype, j));
    });
    maximum = block_max(maximum, memory.warp_maximum);
    double slope;
    const double top = cap(static_cast<double>(maximum), softcap_of(rows), slope);
    const RowRecord record = sum_row(rows, logits, maximum, top, memory);
    if (threadIdx.x == 0) {
      memory.scale = scale_of(rows, memory.target, record, 1.0,
                              row_sums(record, capped_unit_of(record, softcap_of(rows)), rows));
    }
    __syncthreads();
    const bool correct = target_is_first(rows, memory);
    if (threadIdx.x == 0) store_record(record, memory.row, correct, records);
    if (rows.grad != nullptr) write_gradient(rows, row, top, memory.scale);
    // No barrier: the next row has some before it writes what other threads may still read here,
    // `memory.scale`; its `memory.row` they have read before the last one.
  }
}

}  // namespace

void launch_capped_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                        cudaStream_t stream, std::int64_t most_rows) {
  const auto grid = static_cast<unsigned>(std::min(rows.rows, most_rows));
  launch(capped_rows_kernel, {grid, kThreads, sizeof(RowMemory), 1}, stream, rows, totals, records);
}

}  // namespace flatstep::cuda
