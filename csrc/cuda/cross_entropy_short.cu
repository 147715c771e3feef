// Rows of at most kShortRow classes: a warp holds several at a time, and what comes between sums
// and gradient is done side by side, a lane each.
#include "cuda/cross_entropy_finish.h"
#include "cuda/cross_entropy_slice.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

constexpr int kWarps = 4;  // of a block

// Which of the warp's rows there are, one bit each, and the row of this lane.
template <int kRows>
struct WarpRows {
  std::int64_t first;
  unsigned valid;
  Row own;

  __device__ __forceinline__ WarpRows(const CrossEntropyRows& rows, std::int64_t first_row)
      : first(first_row), own{first_row + lane(), -1, 0.0f} {
    if (lane() < kRows && own.index < rows.rows) own.target = target_of(rows, own.index);
    valid = __ballot_sync(kAllLanes, own.target >= 0);
    if (own.target >= 0) {
      own.target_logit = load_element(logits_of(rows, own.index), rows.dtype, own.target);
    }
  }
  __device__ __forceinline__ bool has(int r) const { return (valid >> r & 1u) != 0; }
};

// As in cross_entropy_team.h, for a row of another lane.
__device__ __forceinline__ bool is_first_of_largest(const CrossEntropyRows& rows, std::int64_t row,
                                                    std::int64_t target, float target_logit) {
  const void* logits = logits_of(rows, row);
  int ties = 0;
  for (std::int64_t j = lane(); j < target; j += kWarp) {
    ties += load_element(logits, rows.dtype, j) == target_logit ? 1 : 0;
  }
  return warp_sum(ties) == 0;
}

// Rows that are ignored, or all of them at fault.
template <int kRows>
__device__ __forceinline__ void clear_rows(const CrossEntropyRows& rows, std::int64_t first,
                                           unsigned valid) {
  if (rows.grad == nullptr) return;
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t row = first + r;
    if ((valid >> r & 1u) != 0 || row >= rows.rows) continue;
    void* gradient = gradient_of(rows, row);
    for (std::int64_t j = lane(); j < rows.classes; j += kWarp) {
      store_element(gradient, rows.grad_dtype, j, 0.0f);
    }
  }
}

template <Sums kSums, int kRows, int kPairs>
__global__ void __launch_bounds__(kWarps* kWarp)
    short_rows_kernel(const __grid_constant__ CrossEntropyRows rows, const LossTotals* totals,
                      RowRecord* records) {
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp();
  const std::int64_t first = number * kRows;
  const bool fault = totals->fault != LossFault::none;
  if (fault || first >= rows.rows) {
    if (rows.zero_at_fault) clear_rows<kRows>(rows, first, 0);
    return;
  }
  const WarpRows<kRows> own(rows, first);
  const auto* weights = static_cast<const float*>(rows.class_weight);
  const int classes = static_cast<int>(rows.classes);
  const Pairs<kWarp, kPairs> pairs{2 * lane(), classes - 2 * lane(), classes};
  float x[kRows][2 * kPairs];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (own.has(r)) load_slice(logits_of(rows, first + r), rows.dtype, classes, pairs, x[r]);
  }
  RowRecord record{};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (!own.has(r)) continue;
    const float own_largest = largest_of(pairs, x[r]);
    const float maximum = warp_max(own_largest);
    const SliceUnit unit(maximum);
    const PartSums sums =
        sum_over_warp<kSums>(sum_slice<kSums>(x[r], unit, own_largest, weights, pairs));
    if (lane() == r) record = record_of(sums, maximum);
  }
  RowScale scale{};
  if (own.own.target >= 0) {
    scale = scale_of(rows, target_in(rows, totals->factor, own.own), record);
  }
  for (int r = 0; r < kRows; ++r) {
    const bool several = __shfl_sync(kAllLanes, scale.several, r) != 0;
    if (!several) continue;
    const std::int64_t target = __shfl_sync(kAllLanes, own.own.target, r);
    const float target_logit = __shfl_sync(kAllLanes, own.own.target_logit, r);
    const bool correct = is_first_of_largest(rows, first + r, target, target_logit);
    if (lane() == r) scale.correct = correct ? 1 : 0;
  }
  if (own.own.target >= 0) store_record(record, own.own, scale.correct != 0, records);
  if (rows.grad == nullptr) return;
  __syncwarp();  // other lanes have read the targets' logits, which the gradient may overwrite
  const GradientFactors own_factors = factors_of(scale);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (!own.has(r)) continue;
    const GradientFactors factors{__shfl_sync(kAllLanes, own_factors.factor, r),
                                  __shfl_sync(kAllLanes, own_factors.spread, r),
                                  __shfl_sync(kAllLanes, own_factors.constant, r),
                                  __shfl_sync(kAllLanes, own_factors.is_constant ? 1 : 0, r) != 0};
    gradient_slice<kSums == Sums::all>(x[r], factors, weights, pairs);
    void* gradient = gradient_of(rows, first + r);
    store_slice(gradient, rows.grad_dtype, classes, pairs, x[r]);
  }
  clear_rows<kRows>(rows, first, own.valid);
}

template <int kRows, int kPairs>
void launch_kernel_of(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                      cudaStream_t stream) {
  static_assert(kRows <= kWarp);
  const std::int64_t each = std::int64_t{kRows} * kWarps;
  const auto grid = static_cast<unsigned>((rows.rows + each - 1) / each);
  // Sums for the entropy cost little here, and another kernel takes long to compile.
  const auto kernel = rows.label_smoothing > 0 ? short_rows_kernel<Sums::all, kRows, kPairs>
                                               : short_rows_kernel<Sums::entropy, kRows, kPairs>;
  launch(kernel, {grid, kWarps * kWarp}, stream, rows, totals, records);
}

}  // namespace

void launch_short_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                       cudaStream_t stream) {
  static_assert(kShortRow == 2 * 16 * kWarp, "what a warp holds of two rows");
  if (rows.classes <= 2 * 4 * kWarp) {
    launch_kernel_of<8, 4>(rows, totals, records, stream);
  } else {
    launch_kernel_of<2, 16>(rows, totals, records, stream);
  }
}

}  // namespace flatstep::cuda
