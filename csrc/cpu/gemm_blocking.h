// How a matrix product is cut: what is packed, how much at a time, and which part is whose.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/kernels/table.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {

// Packed at a time: what fits the caches of a few cores and a bounded workspace. Of A and B
// together at most this many floats, or these rows and columns of the least depth.
constexpr std::int64_t kPackedFloats = 1 << 20;
constexpr std::int64_t kPackedRows = 2304;
constexpr std::int64_t kPackedColumns = 3072;
// Of panels that one task computes, at most. Small products are cut finer, until there are enough
// tasks.
constexpr std::int64_t kTileRowPanels = 8;
constexpr std::int64_t kTileColumnPanels = 8;
constexpr std::int64_t kEnoughTasks = 40;
// Panels that one task packs.
constexpr std::int64_t kPackPanels = 8;
// The kernel reads rows of A where they are. Where it would walk along rows of B, or of a
// transposed A, it does so only for small matrices: the others are not kept by the nearest caches.
constexpr std::int64_t kSmallFloats = 1 << 14;
// What the second-level cache keeps: a transposed A of at most so many floats, in rows at most so
// far apart, is also read where it lies; a B of at most so many is read by every worker.
constexpr std::int64_t kNearFloats = 1 << 18;
constexpr std::int64_t kNearStep = 256;
// Floats in a line of the cache.
constexpr std::int64_t kLine = 16;

inline std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline std::int64_t round_down(std::int64_t value, std::int64_t multiple) {
  return std::max(value / multiple, std::int64_t{1}) * multiple;
}

inline std::int64_t blocks(std::int64_t size, std::int64_t block) {
  return (size + block - 1) / block;
}

// A stretch of rows, of columns or of k.
struct Range {
  std::int64_t begin, size;
};

inline Range sub_range(const Range& range, std::int64_t index, std::int64_t stretch) {
  const std::int64_t offset = index * stretch;
  return {range.begin + offset, std::min(stretch, range.size - offset)};
}

// How much of a product is worked on at a time.
struct Blocking {
  bool pack_a, pack_b;
  std::int64_t rows, columns, depth;

  Blocking(std::int64_t m, std::int64_t n, std::int64_t k, bool packs_a, bool packs_b)
      : pack_a(packs_a), pack_b(packs_b), rows(m), columns(n), depth(k) {
    const std::int64_t step = kernels().gemm_depth;
    if (pack_a) rows = std::min(m, kPackedRows);
    if (pack_b && pack_a) columns = std::min(n, kPackedColumns);
    if (pack_b && !pack_a) {  // few visits of C: rather a large depth than many columns
      depth = std::min(k, 4 * step);
      const std::int64_t tile = kTileColumnPanels * kernels().gemm_columns;
      columns = std::min(n, round_down(kPackedFloats / depth, tile));
    }
    const std::int64_t packed = packed_rows() + packed_columns();
    if (packed > 0) depth = std::min(depth, round_down(kPackedFloats / packed, step));
  }

  std::int64_t packed_rows() const { return pack_a ? round_up(rows, kernels().gemm_rows) : 0; }
  std::int64_t packed_columns() const {
    return pack_b ? round_up(columns, kernels().gemm_columns) : 0;
  }
};

// At least what any product of at most this size packs at a time, whichever of A and B it packs.
inline std::int64_t most_packed_floats(std::int64_t m, std::int64_t n, std::int64_t k) {
  const KernelTable& table = kernels();
  const std::int64_t whole = (round_up(m, table.gemm_rows) + round_up(n, table.gemm_columns)) * k;
  const std::int64_t least = (round_up(std::min(m, kPackedRows), table.gemm_rows) +
                              round_up(std::min(n, kPackedColumns), table.gemm_columns)) *
                             std::min(k, table.gemm_depth);
  return std::max(least, std::min(kPackedFloats, whole));
}

inline bool needs_packing_a(const Gemm& call) {
  if (call.type_a != DType::f32) return true;
  const bool near = call.lda <= kNearStep && call.m * call.k <= kNearFloats;
  return call.transpose_a && !near && call.m * call.k > kSmallFloats;
}

// The kernel reads whole panels of B, so an incomplete one is packed. A few rows of C are not worth
// the packing.
inline bool needs_packing_b(const Gemm& call) {
  if (call.type_b != DType::f32 || call.transpose_b || call.n % kernels().gemm_columns != 0) {
    return true;
  }
  return call.k * call.n > kSmallFloats && call.m > 2 * kernels().gemm_rows;
}

struct TileShape {
  std::int64_t rows, columns;

  TileShape(std::int64_t m, std::int64_t n) {
    const std::int64_t row = kernels().gemm_rows, column = kernels().gemm_columns;
    std::int64_t row_panels = kTileRowPanels, column_panels = kTileColumnPanels;
    const auto tasks = [&] {
      return blocks(m, row_panels * row) * blocks(n, column_panels * column);
    };
    while (row_panels > 2 && tasks() < kEnoughTasks) row_panels /= 2;
    // A single thread needs no tasks, and what follows a product likes whole rows.
    const std::int64_t enough = worker_count() > 1 ? kEnoughTasks : 1;
    while (column_panels > 1 && tasks() < enough) column_panels /= 2;
    rows = row_panels * row;
    columns = column_panels * column;
  }
};

// How a wide product is worked on that packs A and B, a weight's gradient: all threads pack A, as
// much of k at a time as there is room for; of B, each task packs the columns that it needs itself.
// Those it has in its second-level cache, and nobody waits for them.
struct Stripes {
  std::int64_t rows, depth;          // of A, packed at a time
  std::int64_t columns = 0, floats;  // of a task, 0 if this way is none; of B, for each worker

  explicit Stripes(const Gemm& call) : rows(std::min(call.m, kPackedRows)) {
    const KernelTable& table = kernels();
    const std::int64_t panels = blocks(call.n, table.gemm_columns), workers = worker_count();
    if (call.n <= call.m || panels < 2 * workers) return;
    std::int64_t turns = 2;  // every worker has as many stripes
    while (blocks(panels, workers * turns) > kTileColumnPanels) ++turns;
    const std::int64_t stripe = blocks(panels, workers * turns) * table.gemm_columns;
    const std::int64_t padded = round_up(rows, table.gemm_rows);
    const std::int64_t step = std::min(call.k, table.gemm_depth);
    const std::int64_t room = most_packed_floats(call.m, call.n, call.k);
    const std::int64_t left = room - workers * round_up(stripe * step, kLine);
    if (left < padded * step) return;
    columns = stripe;
    depth = std::min(call.k, left / padded / step * step);
    floats = (room - padded * depth) / workers / kLine * kLine;
  }
};

}  // namespace flatstep::cpu
