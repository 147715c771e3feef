// The loss on a CUDA device: what the files of that name offer to backend.cu. All of it runs in the
// order of the stream.
#pragma once

#include <cuda_runtime.h>

#include "core/backend.h"

namespace flatstep::cuda {

// What a row adds to the totals.
struct RowLoss {
  double loss;
  std::int64_t correct;
};

// How the threads of the device share a row: the blocks of a cluster hold one stretch each, so many
// pairs of classes a thread, and come back for the rest of a row that is longer than that.
struct RowShape {
  int cluster;  // blocks a row
  int pairs;    // 8 or 32
};
// Classes that a block holds with 8 and with 32 pairs a thread.
constexpr std::int64_t kFewClasses = 4096, kManyClasses = 16384;
inline RowShape row_shape(std::int64_t classes, int largest_cluster) {
  if (classes <= kFewClasses) return {1, 8};
  int cluster = 1;
  while (cluster < largest_cluster && classes > kManyClasses * cluster) cluster *= 2;
  return {cluster, 32};
}

// Fills row_losses as well, one element a row. In order: the rows' kernel for long rows, for short
// ones (at most kShortRow classes, a warp takes several), and for any under softcap.
void launch_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowLoss* row_losses,
                 const RowShape& shape, cudaStream_t stream);
constexpr std::int64_t kShortRow = 1024;
void launch_short_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowLoss* row_losses,
                       cudaStream_t stream);
void launch_capped_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowLoss* row_losses,
                        cudaStream_t stream);

// The parts of the targets that blocks of threads count; then the totals.
constexpr int kTargetParts = 64;
struct TargetPart {
  std::int64_t n_valid;
  double weight;
  std::int64_t wrong_row, wrong_class;  // the first, or INT64_MAX
};
void launch_start(const LossTask& task, TargetPart* parts, LossTotals* totals, cudaStream_t stream);
// Adds the rows' losses to the totals.
void launch_row_sums(const RowLoss* row_losses, std::int64_t rows, LossTotals* totals,
                     cudaStream_t stream);
void launch_finish(const LossTask& task, const LossTotals* totals, CrossEntropyStatus* status,
                   cudaStream_t stream);

}  // namespace flatstep::cuda
