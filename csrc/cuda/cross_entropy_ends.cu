// The ends of rows: from their sums to the losses, and to what the rows' gradients have in the
// places of the targets. A thread each, since logarithms and divisions in float64 take a row's time
// when one thread of a block computes them; then the sum of the losses, in a fixed order.
#include "cuda/cross_entropy_finish.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

struct SumMemory {
  double loss[kRowsOfPart / kWarp];
  std::int64_t correct[kRowsOfPart / kWarp];
};

__device__ __forceinline__ RowsPart sum_over_block(RowsPart part, SumMemory& memory) {
  part.loss = block_sum(part.loss, memory.loss);
  part.correct = block_sum(part.correct, memory.correct);
  return part;
}

__device__ __forceinline__ void store_rows(const CrossEntropyRows& rows, std::int64_t row,
                                           double loss, double lse, double entropy) {
  const auto store = [row](void* array, double value) {
    if (array != nullptr) static_cast<float*>(array)[row] = static_cast<float>(value);
  };
  store(rows.loss, loss);
  store(rows.lse, lse);
  store(rows.entropy, entropy);
}

__device__ __forceinline__ RowsPart end_row(const CrossEntropyRows& rows, double factor,
                                            std::int64_t index, std::int64_t target,
                                            const RowRecord& record) {
  const RowUnit unit =
      rows.softcap > 0 ? capped_unit_of(record, softcap_of(rows)) : unit_of(record);
  const RowResult<double> result = finish_row<double>(
      row_sums(record, unit, rows), target_in(rows, factor, {index, target, record.target}),
      {rows.label_smoothing, rows.z_loss, softcap_of(rows)});
  store_rows(rows, index, result.loss, result.lse, result.entropy);
  // A row without weight has zeros there already, one that is not a number has that.
  if (rows.grad != nullptr && result.weight != 0 && result.factor == result.factor) {
    store_element(gradient_of(rows, index), rows.grad_dtype, target,
                  static_cast<float>(result.at_target));
  }
  return {result.loss, record.correct};
}

__global__ void __launch_bounds__(kRowsOfPart)
    row_ends_kernel(const __grid_constant__ CrossEntropyRows rows, const LossTotals* totals,
                    const RowRecord* records, RowsPart* parts) {
  SumMemory& memory = shared_memory<SumMemory>();
  if (totals->fault != LossFault::none) return;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kRowsOfPart + threadIdx.x;
  RowsPart part{0.0, 0};
  if (index < rows.rows) {
    const std::int64_t target = target_of(rows, index);
    if (target < 0) {
      store_rows(rows, index, 0.0, 0.0, 0.0);
    } else {
      part = end_row(rows, totals->factor, index, target, records[index]);
    }
  }
  part = sum_over_block(part, memory);
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
}

// One block: every thread takes its parts in order, and the threads' sums go up a fixed tree.
__global__ void __launch_bounds__(kRowsOfPart)
    parts_sum_kernel(const RowsPart* parts, std::int64_t count, LossTotals* totals) {
  SumMemory& memory = shared_memory<SumMemory>();
  if (totals->fault != LossFault::none) return;
  RowsPart sum{0.0, 0};
  for (std::int64_t i = threadIdx.x; i < count; i += kRowsOfPart) {
    sum.loss += parts[i].loss;
    sum.correct += parts[i].correct;
  }
  sum = sum_over_block(sum, memory);
  if (threadIdx.x == 0) {
    totals->loss += sum.loss;
    totals->correct += sum.correct;
  }
}

}  // namespace

void launch_row_ends(const CrossEntropyRows& rows, const RowRecord* records, RowsPart* parts,
                     LossTotals* totals, cudaStream_t stream) {
  const std::int64_t count = row_parts(rows.rows);
  launch(row_ends_kernel, {static_cast<unsigned>(count), kRowsOfPart, sizeof(SumMemory)}, stream,
         rows, totals, records, parts);
  launch(parts_sum_kernel, {1, kRowsOfPart, sizeof(SumMemory)}, stream, parts, count, totals);
}

}  // namespace flatstep::cuda
