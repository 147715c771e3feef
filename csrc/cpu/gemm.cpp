#include "cpu/gemm.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

// Packed at a time: what fits the caches of a few cores and a bounded workspace. Of A and B
// together at most this many floats, or these rows and columns of the least depth.
constexpr std::int64_t kPackedFloats = 1 << 20;
constexpr std::int64_t kPackedRows = 2304;
constexpr std::int64_t kPackedColumns = 3072;
// Of panels that one task computes, at most; a fixed number, so tiles do not depend on the thread
// count. Small products are cut finer, until there are enough tasks.
constexpr std::int64_t kTileRowPanels = 8;
constexpr std::int64_t kTileColumnPanels = 8;
constexpr std::int64_t kEnoughTasks = 40;
// Panels that one task packs.
constexpr std::int64_t kPackPanels = 8;
// The kernel reads rows of A where they are. Where it would walk along rows of B, or of a
// transposed A, it does so only for small matrices: the others are not kept by the nearest caches.
constexpr std::int64_t kSmallFloats = 1 << 14;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::int64_t round_down(std::int64_t value, std::int64_t multiple) {
  return std::max(value / multiple, std::int64_t{1}) * multiple;
}

std::int64_t blocks(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }

// A stretch of rows, of columns or of k.
struct Range {
  std::int64_t begin, size;
};

Range sub_range(const Range& range, std::int64_t index, std::int64_t stretch) {
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
std::int64_t most_packed_floats(std::int64_t m, std::int64_t n, std::int64_t k) {
  const KernelTable& table = kernels();
  const std::int64_t whole = (round_up(m, table.gemm_rows) + round_up(n, table.gemm_columns)) * k;
  const std::int64_t least = (round_up(std::min(m, kPackedRows), table.gemm_rows) +
                              round_up(std::min(n, kPackedColumns), table.gemm_columns)) *
                             std::min(k, table.gemm_depth);
  return std::max(least, std::min(kPackedFloats, whole));
}

bool needs_packing_a(const Gemm& call) {
  return call.type_a != DType::f32 || (call.transpose_a && call.m * call.k > kSmallFloats);
}

// The kernel reads whole panels of B, so an incomplete one is packed. A few rows of C are not worth
// the packing.
bool needs_packing_b(const Gemm& call) {
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
    while (column_panels > 1 && tasks() < kEnoughTasks) column_panels /= 2;
    rows = row_panels * row;
    columns = column_panels * column;
  }
};

GemmOperand operand_a(const Gemm& call, const float* packed, std::int64_t row, const Range& depth) {
  if (packed != nullptr) return {packed, depth.size, kernels().gemm_rows, false};
  const auto* a = static_cast<const float*>(call.a);
  if (call.transpose_a) return {a + depth.begin * call.lda + row, 1, call.lda, false};
  return {a + row * call.lda + depth.begin, call.lda, call.lda, true};
}

GemmOperand operand_b(const Gemm& call, const float* packed, std::int64_t column,
                      const Range& depth) {
  if (packed != nullptr) return {packed, depth.size, kernels().gemm_columns, false};
  return {static_cast<const float*>(call.b) + depth.begin * call.ldb + column, 1, call.ldb, false};
}

// The tile, stretch by stretch of k, so that panels of A stay in the second-level cache.
void multiply_tile(const Gemm& call, GemmTile tile, const Range& depth) {
  const std::int64_t step = kernels().gemm_depth;
  for (std::int64_t p = 0; p < depth.size; p += step) {
    tile.depth = std::min(step, depth.size - p);
    tile.first = depth.begin + p == 0;
    kernels().gemm_tile(call, tile);
    tile.a.data += step * (tile.a.row_major ? 1 : tile.a.step);
    tile.b.data += step * tile.b.step;
  }
}

void pack_block(const Gemm& call, const Range& rows, const Range& columns, const Range& depth,
                float* packed_a, float* packed_b) {
  const KernelTable& table = kernels();
  const std::int64_t pack_rows = kPackPanels * table.gemm_rows;
  const std::int64_t pack_columns = kPackPanels * table.gemm_columns;
  const std::int64_t tasks_a = packed_a != nullptr ? blocks(rows.size, pack_rows) : 0;
  const std::int64_t tasks_b = packed_b != nullptr ? blocks(columns.size, pack_columns) : 0;
  parallel_for(tasks_a + tasks_b, [&](std::int64_t task, int) {
    if (task < tasks_a) {
      const Range part = sub_range(rows, task, pack_rows);
      table.gemm_pack_a(call, part.begin, part.size, depth.begin, depth.size,
                        packed_a + (part.begin - rows.begin) * depth.size);
    } else {
      const Range part = sub_range(columns, task - tasks_a, pack_columns);
      table.gemm_pack_b(call, part.begin, part.size, depth.begin, depth.size,
                        packed_b + (part.begin - columns.begin) * depth.size);
    }
  });
}

// C over `rows` x `columns` += one stretch of k, packed and multiplied on all threads.
void multiply_block(const Gemm& call, const Range& rows, const Range& columns, const Range& depth,
                    float* packed_a, float* packed_b, const GemmFinish& finish) {
  pack_block(call, rows, columns, depth, packed_a, packed_b);
  const TileShape shape(call.m, call.n);
  const bool last = depth.begin + depth.size == call.k;
  const std::int64_t row_tiles = blocks(rows.size, shape.rows);
  parallel_for(row_tiles * blocks(columns.size, shape.columns), [&](std::int64_t task, int) {
    const Range row = sub_range(rows, task % row_tiles, shape.rows);
    const Range column = sub_range(columns, task / row_tiles, shape.columns);
    const float* a = packed_a ? packed_a + (row.begin - rows.begin) * depth.size : nullptr;
    const float* b = packed_b ? packed_b + (column.begin - columns.begin) * depth.size : nullptr;
    multiply_tile(
        call,
        {row.begin, row.size, column.begin, column.size, 0, operand_a(call, a, row.begin, depth),
         operand_b(call, b, column.begin, depth), false},
        depth);
    if (last && finish.function != nullptr) {
      finish.function(finish.context, {row.begin, row.size, column.begin, column.size});
    }
  });
}

// Up to so many rows of C, a task packs the columns of B that it needs itself, and has them in its
// second-level cache.
constexpr std::int64_t kFewRows = 512;

std::int64_t few_rows_columns(const Gemm& call) {
  const std::int64_t panel = kernels().gemm_columns;
  std::int64_t panels = kTileColumnPanels / 2;
  while (panels > 1 && blocks(call.n, panels * panel) < kEnoughTasks) panels /= 2;
  return panels * panel;
}

// How much of k one worker has room for; 0 where that is too little.
std::int64_t few_rows_depth(const Gemm& call) {
  const std::int64_t step = std::min(call.k, kernels().gemm_depth);
  const std::int64_t room =
      most_packed_floats(call.m, call.n, call.k) / worker_count() / few_rows_columns(call);
  return std::min(call.k, room / step * step);
}

void multiply_few_rows(const Gemm& call, float* workspace, const GemmFinish& finish) {
  const std::int64_t width = few_rows_columns(call), most = few_rows_depth(call);
  const std::int64_t tile_rows = TileShape(call.m, call.n).rows;
  const Range all_rows{0, call.m}, all_columns{0, call.n}, all_depth{0, call.k};
  parallel_for(blocks(call.n, width), [&](std::int64_t task, int worker) {
    const Range column = sub_range(all_columns, task, width);
    float* packed = workspace + worker * width * most;
    for (std::int64_t p = 0; p < blocks(call.k, most); ++p) {
      const Range depth = sub_range(all_depth, p, most);
      kernels().gemm_pack_b(call, column.begin, column.size, depth.begin, depth.size, packed);
      for (std::int64_t i = 0; i < blocks(call.m, tile_rows); ++i) {
        const Range row = sub_range(all_rows, i, tile_rows);
        multiply_tile(call,
                      {row.begin, row.size, column.begin, column.size, 0,
                       operand_a(call, nullptr, row.begin, depth),
                       operand_b(call, packed, column.begin, depth), false},
                      depth);
        if (depth.begin + depth.size == call.k && finish.function != nullptr) {
          finish.function(finish.context, {row.begin, row.size, column.begin, column.size});
        }
      }
    }
  });
}

}  // namespace

std::size_t gemm_workspace_floats(std::int64_t m, std::int64_t n, std::int64_t k) {
  return static_cast<std::size_t>(most_packed_floats(m, n, k));
}

std::size_t gemm_workspace_floats() {
  return gemm_workspace_floats(kPackedRows, kPackedColumns, kPackedFloats);
}

void gemm(const Gemm& call, float* workspace, const GemmFinish& finish) {
  const bool pack_a = needs_packing_a(call), pack_b = needs_packing_b(call);
  if (pack_b && !pack_a && call.m <= kFewRows && few_rows_depth(call) > 0) {
    multiply_few_rows(call, workspace, finish);
    return;
  }
  const Blocking block(call.m, call.n, call.k, pack_a, pack_b);
  float* packed_a = block.pack_a ? workspace : nullptr;
  float* packed_b = block.pack_b ? workspace + block.packed_rows() * block.depth : nullptr;
  const Range all_rows{0, call.m}, all_columns{0, call.n}, all_depth{0, call.k};
  for (std::int64_t j = 0; j < blocks(call.n, block.columns); ++j) {
    for (std::int64_t i = 0; i < blocks(call.m, block.rows); ++i) {
      for (std::int64_t p = 0; p < blocks(call.k, block.depth); ++p) {
        multiply_block(call, sub_range(all_rows, i, block.rows),
                       sub_range(all_columns, j, block.columns),
                       sub_range(all_depth, p, block.depth), packed_a, packed_b, finish);
      }
    }
  }
}

std::int64_t gemm_region_rows(std::int64_t m, std::int64_t n) { return TileShape(m, n).rows; }

}  // namespace flatstep::cpu
