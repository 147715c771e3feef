#include "cpu/gemm.h"

#include "cpu/gemm_blocking.h"
#include "cpu/gemm_tiles.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

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
  const std::int64_t column_tiles = blocks(columns.size, shape.columns);
  // All of a small B stays in the second-level cache. Then a worker has whole rows of C, the same
  // ones in all products of a step, and finds what it wrote itself.
  const bool whole_rows = columns.size * depth.size <= kNearFloats;
  parallel_for(row_tiles * column_tiles, [&](std::int64_t task, int) {
    const Range row =
        sub_range(rows, whole_rows ? task / column_tiles : task % row_tiles, shape.rows);
    const Range column =
        sub_range(columns, whole_rows ? task % column_tiles : task / row_tiles, shape.columns);
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
// second-level cache; unless B is so small that it matters more who has the rows of C.
constexpr std::int64_t kFewRows = 512;
constexpr std::int64_t kSmallPackedFloats = 1 << 16;

// Deeper products have long tasks: few, wide ones read B in longer stretches, and one step of k at
// a time, which leaves room for A in that cache.
constexpr std::int64_t kDeep = 4096;

std::int64_t few_rows_columns(const Gemm& call) {
  const std::int64_t panel = kernels().gemm_columns;
  const std::int64_t enough = call.k > kDeep ? 2 * worker_count() : kEnoughTasks;
  std::int64_t panels = kTileColumnPanels / 2;
  while (panels > 1 && blocks(call.n, panels * panel) < enough) panels /= 2;
  return panels * panel;
}

// How much of k one worker has room for; 0 where that is too little.
std::int64_t few_rows_depth(const Gemm& call) {
  const std::int64_t step = std::min(call.k, kernels().gemm_depth);
  const std::int64_t room =
      most_packed_floats(call.m, call.n, call.k) / worker_count() / few_rows_columns(call);
  return std::min(call.k > kDeep ? step : call.k, room / step * step);
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

// C over `rows` += one stretch of k.
void multiply_stripes(const Gemm& call, const Stripes& stripes, const Range& rows,
                      const Range& depth, float* packed_a) {
  const KernelTable& table = kernels();
  pack_block(call, rows, {0, 0}, depth, packed_a, nullptr);
  float* packed = packed_a + round_up(rows.size, table.gemm_rows) * depth.size;
  const std::int64_t most =
      std::min(depth.size, round_down(stripes.floats / stripes.columns, table.gemm_depth));
  const std::int64_t tile_rows = kTileRowPanels * table.gemm_rows;
  const Range all_columns{0, call.n};
  parallel_for(blocks(call.n, stripes.columns), [&](std::int64_t task, int worker) {
    const Range column = sub_range(all_columns, task, stripes.columns);
    float* packed_b = packed + worker * stripes.floats;
    for (std::int64_t p = 0; p < depth.size; p += most) {
      const Range part{depth.begin + p, std::min(most, depth.size - p)};
      table.gemm_pack_b(call, column.begin, column.size, part.begin, part.size, packed_b);
      for (std::int64_t i = 0; i < blocks(rows.size, tile_rows); ++i) {
        const Range row = sub_range(rows, i, tile_rows);
        const float* a = packed_a + (row.begin - rows.begin) * depth.size + p * table.gemm_rows;
        multiply_tile(call,
                      {row.begin,
                       row.size,
                       column.begin,
                       column.size,
                       0,
                       {a, depth.size, table.gemm_rows, false},
                       operand_b(call, packed_b, column.begin, part),
                       false},
                      part);
      }
    }
  });
}

}  // namespace

std::size_t gemm_workspace_floats(std::int64_t m, std::int64_t n, std::int64_t k) {
  return static_cast<std::size_t>(most_packed_floats(m, n, k));
}

void gemm(const Gemm& call, float* workspace, const GemmFinish& finish) {
  const bool pack_a = needs_packing_a(call), pack_b = needs_packing_b(call);
  const bool large_b = call.k * call.n > kSmallPackedFloats;
  if (pack_b && !pack_a && call.m <= kFewRows && large_b && few_rows_depth(call) > 0) {
    multiply_few_rows(call, workspace, finish);
    return;
  }
  const Range all_rows{0, call.m}, all_columns{0, call.n}, all_depth{0, call.k};
  if (const Stripes stripes(call);
      pack_a && pack_b && stripes.columns > 0 && finish.function == nullptr) {
    for (std::int64_t i = 0; i < blocks(call.m, stripes.rows); ++i) {
      for (std::int64_t p = 0; p < blocks(call.k, stripes.depth); ++p) {
        multiply_stripes(call, stripes, sub_range(all_rows, i, stripes.rows),
                         sub_range(all_depth, p, stripes.depth), workspace);
      }
    }
    return;
  }
  const Blocking block(call.m, call.n, call.k, pack_a, pack_b);
  float* packed_a = block.pack_a ? workspace : nullptr;
  float* packed_b = block.pack_b ? workspace + block.packed_rows() * block.depth : nullptr;
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
