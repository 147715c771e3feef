// The loss on a CUDA device: what the files of that name offer to backend.cu. All of it runs in the
// order of the stream.
#pragma once

#include <cuda_runtime.h>

#include "core/backend.h"

namespace flatstep::cuda {

// What the kernels of rows leave of each row to the one that ends them: sums over its classes, as
// in CrossEntropyBlock, in the unit of its largest logit (under softcap, of the largest capped
// one).
struct RowRecord {
  double tops, rest;                 // sums of exponentials: of the largest logits, of all others
  double weighted, logits, allowed;  // the last two only when smoothing, like `unmasked`
  float largest, target;             // logits, before softcap
  std::int32_t unmasked;
  std::int32_t correct;  // whether the target is the first of the largest
};

// How the threads of the device share a row. It is cut into parts, of which a block holds some at a
// time and a cluster of blocks more; they come back for the rest of a row that is longer than that.
struct RowShape {
  int cluster;  // blocks a row
  int parts;    // of a block, at a time
  int warps;    // of a part
  int tiles;    // of a warp, kTile classes each

  int threads() const { return 32 * warps * parts; }
  std::int64_t classes_of_block() const { return std::int64_t{kTile} * tiles * warps * parts; }

  static constexpr int kTile = 64;  // two classes a lane
};
// A part has at most so many classes, 64 to 128 for each of its threads, which outweigh what these
// have to do besides.
constexpr std::int64_t kPartClasses = 16384;
// Parts and threads of a block, and parts that a cluster holds at a time, a lane of a warp each.
constexpr int kMostParts = 4, kMostThreads = 512, kClusterParts = 32;
// `shared_bytes` is what a block can have. On one device the cut into parts follows from the number
// of classes alone, and so do the bits of a row's sums; which block has a part depends on the
// type's size.
RowShape row_shape(std::int64_t classes, std::size_t element_bytes, int largest_cluster,
                   std::int64_t shared_bytes);

// Gradients, but for those of the targets, and records. In order: the rows' kernel for long rows,
// for short ones (at most kShortRow classes, a warp takes several), and for any under softcap.
//
// At most `most_rows` are launched at a time; more go round.
constexpr std::int64_t kMostRows = 1 << 20;
void launch_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                 const RowShape& shape, cudaStream_t stream, std::int64_t most_rows = kMostRows);
constexpr std::int64_t kShortRow = 1024;
void launch_short_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                       cudaStream_t stream);
void launch_capped_rows(const CrossEntropyRows& rows, const LossTotals* totals, RowRecord* records,
                        cudaStream_t stream, std::int64_t most_rows = kMostRows);
// From the records to losses, log-sum-exps, entropies and the gradients of the targets; the losses
// are added to the totals. `parts` has row_parts() elements.
struct RowsPart {
  double loss;
  std::int64_t correct;
};
constexpr int kRowsOfPart = 256;
inline std::int64_t row_parts(std::int64_t rows) { return (rows + kRowsOfPart - 1) / kRowsOfPart; }
void launch_row_ends(const CrossEntropyRows& rows, const RowRecord* records, RowsPart* parts,
                     LossTotals* totals, cudaStream_t stream);

// The parts of the targets that blocks of threads count; then the totals.
constexpr int kTargetParts = 64;
struct TargetPart {
  std::int64_t n_valid;
  double weight;
  std::int64_t wrong_row, wrong_class;  // the first, or INT64_MAX
};
void launch_start(const LossTask& task, TargetPart* parts, LossTotals* totals, cudaStream_t stream);
void launch_finish(const LossTask& task, const LossTotals* totals, CrossEntropyStatus* status,
                   cudaStream_t stream);

}  // namespace flatstep::cuda
