#include "cpu/gemm.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

// Panels of A and B packed at a time: what fits the second-level caches and a bounded workspace.
constexpr std::int64_t kPackedRows = 2304;
constexpr std::int64_t kPackedColumns = 3072;
// Panels that one task computes; a fixed number, so tiles do not depend on the thread count.
constexpr std::int64_t kTileRowPanels = 8;
constexpr std::int64_t kTileColumnPanels = 4;
// Panels that one task packs.
constexpr std::int64_t kPackPanels = 8;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::int64_t blocks(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }

// A stretch of rows or columns of C.
struct Range {
  std::int64_t begin, size;
};

Range sub_range(const Range& range, std::int64_t index, std::int64_t stretch) {
  const std::int64_t offset = index * stretch;
  return {range.begin + offset, std::min(stretch, range.size - offset)};
}

// C over `rows` x `columns` += one stretch of k, packed and multiplied on all threads.
void multiply_block(const Gemm& call, Range rows, Range columns, Range depth, float* packed_a,
                    float* packed_b) {
  const KernelTable& table = kernels();
  const std::int64_t pack_rows = kPackPanels * table.gemm_rows;
  const std::int64_t pack_columns = kPackPanels * table.gemm_columns;
  const std::int64_t tasks_a = blocks(rows.size, pack_rows);
  const std::int64_t tasks_b = blocks(columns.size, pack_columns);
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

  const std::int64_t tile_rows = kTileRowPanels * table.gemm_rows;
  const std::int64_t tile_columns = kTileColumnPanels * table.gemm_columns;
  const std::int64_t row_tiles = blocks(rows.size, tile_rows);
  parallel_for(row_tiles * blocks(columns.size, tile_columns), [&](std::int64_t task, int) {
    const Range row = sub_range(rows, task % row_tiles, tile_rows);
    const Range column = sub_range(columns, task / row_tiles, tile_columns);
    table.gemm_tile(call, row.begin, row.size, column.begin, column.size, depth.size,
                    packed_a + (row.begin - rows.begin) * depth.size,
                    packed_b + (column.begin - columns.begin) * depth.size, depth.begin == 0);
  });
}

}  // namespace

std::size_t gemm_workspace_floats(std::int64_t m, std::int64_t n, std::int64_t k) {
  const KernelTable& table = kernels();
  const std::int64_t rows = round_up(std::min(m, kPackedRows), table.gemm_rows);
  const std::int64_t columns = round_up(std::min(n, kPackedColumns), table.gemm_columns);
  return static_cast<std::size_t>((rows + columns) * std::min(k, table.gemm_depth));
}

std::size_t gemm_workspace_floats() {
  return gemm_workspace_floats(kPackedRows, kPackedColumns, kernels().gemm_depth);
}

void gemm(const Gemm& call, float* workspace) {
  const KernelTable& table = kernels();
  float* packed_a = workspace;
  float* packed_b = workspace + round_up(std::min(call.m, kPackedRows), table.gemm_rows) *
                                    std::min(call.k, table.gemm_depth);
  const Range all_rows{0, call.m}, all_columns{0, call.n}, all_depth{0, call.k};
  for (std::int64_t j = 0; j < blocks(call.n, kPackedColumns); ++j) {
    for (std::int64_t i = 0; i < blocks(call.m, kPackedRows); ++i) {
      for (std::int64_t p = 0; p < blocks(call.k, table.gemm_depth); ++p) {
        multiply_block(call, sub_range(all_rows, i, kPackedRows),
                       sub_range(all_columns, j, kPackedColumns),
                       sub_range(all_depth, p, table.gemm_depth), packed_a, packed_b);
      }
    }
  }
}

std::size_t gemm_serial_workspace_floats(std::int64_t m, std::int64_t n, std::int64_t k) {
  const KernelTable& table = kernels();
  return static_cast<std::size_t>((round_up(m, table.gemm_rows) + round_up(n, table.gemm_columns)) *
                                  std::min(k, table.gemm_depth));
}

void gemm_serial(const Gemm& call, float* workspace) {
  const KernelTable& table = kernels();
  for (std::int64_t begin = 0; begin < call.k; begin += table.gemm_depth) {
    const std::int64_t depth = std::min(table.gemm_depth, call.k - begin);
    float* packed_b = workspace + round_up(call.m, table.gemm_rows) * depth;
    table.gemm_pack_a(call, 0, call.m, begin, depth, workspace);
    table.gemm_pack_b(call, 0, call.n, begin, depth, packed_b);
    table.gemm_tile(call, 0, call.m, 0, call.n, depth, workspace, packed_b, begin == 0);
  }
}

}  // namespace flatstep::cpu
