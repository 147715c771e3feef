// Rows of cross-entropy under softcap, a block for each. Capped logits are computed in double, so
// this is bound by arithmetic and reads the row three times instead of keeping it.
#include <algorithm>

#include "cuda/cross_entropy_team.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

// One class: its exponential in units of that of the largest, and the slope of the cap.
struct Capped {
  double below, e, slope;
  bool masked;
};

__device__ __forceinline__ Capped capped_at(float x, double softcap, double top) {
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

__device__ __forceinline__ CrossEntropyBlock sum_row(const CrossEntropyRows& rows,
                                                     const void* logits, float maximum, double top,
                                                     RowMemory& memory) {
  const auto* weights = static_cast<const float*>(rows.class_weight);
  PartSums part{};
  for_each_class(rows.classes, [&](std::int64_t j) {
    const float x = load_element(logits, rows.dtype, j);
    const Capped y = capped_at(x, rows.softcap, top);
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
  const PartSums sums = cluster_sum(part, memory);
  const bool masked = maximum == -kInfinite<float>;
  CrossEntropyBlock block;
  block.largest = static_cast<double>(maximum);
  block.maximum = block.shift = masked ? block.largest : top;
  block.exponent = 0;
  block.rest = sums.rest;
  block.total = masked ? sums.rest : sums.rest + sums.tops;
  block.weighted = sums.weighted;
  block.logits = sums.logits;
  block.allowed = sums.allowed;
  block.unmasked = sums.unmasked;
  block.ties = 0;
  return block;
}

__device__ __forceinline__ void write_gradient(const CrossEntropyRows& rows, const Row& row,
                                               double top, const FinishedRow& finished) {
  const void* logits = logits_of(rows, row.index);
  const auto* weights = static_cast<const float*>(rows.class_weight);
  const GradientFactors constant = factors_of(finished, 1.0);
  void* gradient = gradient_of(rows, row.index);
  for_each_class(rows.classes, [&](std::int64_t j) {
    float value = constant.constant;
    if (!constant.is_constant) {
      const Capped y = capped_at(load_element(logits, rows.dtype, j), rows.softcap, top);
      const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[j]);
      const double result = (y.e * finished.factor - finished.spread * weight) * y.slope;
      value = y.masked ? 0.0f : static_cast<float>(result);
      if (j == row.target) value = finished.at_target;
    }
    store_element(gradient, rows.grad_dtype, j, value);
  });
}

__global__ void __launch_bounds__(kThreads)
    capped_rows_kernel(const __grid_constant__ CrossEntropyRows rows, const LossTotals* totals,
                       RowLoss* row_losses) {
  RowMemory& memory = shared_memory<RowMemory>();
  for_each_row(rows, *totals, row_losses, [&](const Row& row) {
    const void* logits = logits_of(rows, row.index);
    float maximum = -kInfinite<float>;
    for_each_class(rows.classes, [&](std::int64_t j) {
      maximum = fmaxf(maximum, load_element(logits, rows.dtype, j));
    });
    maximum = cluster_maximum(maximum, memory);
    double slope;
    const double top = cap(static_cast<double>(maximum), rows.softcap, slope);
    const CrossEntropyBlock block = sum_row(rows, logits, maximum, top, memory);
    if (threadIdx.x == 0) memory.row = finish(rows, *totals, row, block, 1.0f, true);
    __syncthreads();
    store_row_loss(rows, row, row_losses, memory);
    if (rows.grad != nullptr) write_gradient(rows, row, top, memory.row);
  });
}

}  // namespace

void launch_capped_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowLoss* row_losses,
                        cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(std::min(rows.rows, kMostRows));
  launch(capped_rows_kernel, {grid, kThreads, sizeof(RowMemory), 1}, stream, rows, totals,
         row_losses);
}

}  // namespace flatstep::cuda
