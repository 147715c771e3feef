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

// How the threads of the device share a row: the blocks of a cluster hold one stretch of it, and
// come back for the rest of a row that is longer than that.
struct RowShape {
  int cluster;  // blocks a row
  int threads;  // of a block
  int tiles;    // a block's at a time; a tile is two classes a thread
};
// Of any type, with so many bytes of shared memory.
inline std::int64_t classes_of_block(std::int64_t shared_bytes) { return shared_bytes / 4 - 512; }
// `most_classes` is what a block can hold. Two blocks of 25600 classes in f32 fit a multiprocessor
// with 228 KB (sm_90, sm_100), and 64 to 128 classes a thread outweigh what it has to do besides.
// The type must not matter: a 16-bit gradient is that of f32, rounded.
inline RowShape row_shape(std::int64_t classes, int largest_cluster, std::int64_t most_classes) {
  const std::int64_t most = most_classes < 25600 ? most_classes : 25600;
  RowShape shape{1, 0, 0};
  while (shape.cluster < largest_cluster && classes > most * shape.cluster) shape.cluster *= 2;
  const std::int64_t each = (classes + shape.cluster - 1) / shape.cluster;
  shape.threads = each <= 2048 ? 32 : 64;
  while (shape.threads < 256 && each > 128 * shape.threads) shape.threads *= 2;
  const std::int64_t tile = std::int64_t{2} * shape.threads;
  const std::int64_t needed = (each + tile - 1) / tile, possible = most / tile;
  shape.tiles = static_cast<int>(needed < possible ? needed : possible);
  return shape;
}

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
