// The inner part of the matrix product: packing into panels and the register tile, after Goto &
// van de Geijn, "Anatomy of high-performance matrix multiplication" (2008). The blocking over
// threads and cache is in cpu/gemm.cpp. This file is compiled with floating-point contraction, so
// that sum += a * b becomes one instruction where the machine has it.
#include <algorithm>
#include <utility>

#include "cpu/kernels/gemm_pack.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// A tile of kRows x kColumns fills the registers with sums: 12 x 2 of 32 with AVX-512 or NEON,
// 6 x 2 of 16 with AVX or SSE, which leaves two for a row of B and one for an element of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int kColumns = 2 * kWidth;
// Elements of k in a panel. With AVX-512 a panel of B comes from the second-level cache, which
// keeps up; fewer visits of C matter more (bench/gemm.py).
constexpr std::int64_t kDepth = kVectorBytes == 64 ? 512 : 384;

// Whether a panel of B stays in the nearest cache while it meets all of A's. Where it does not, A's
// does, and stretches of C are written one after the other.
constexpr bool kKeepsB = kColumns * kDepth * sizeof(float) <= 32 << 10;

// How an operand lies. Element (i, p) of A is at i + p * kRows where packed, at i * step + p where
// row_major, else at i + p * step; row p of B is at p * kColumns where packed, else at p * step.
enum class Order { packed, row_major, strided };

// c = a * b, plus what c holds with `add`, plus bias where it is not null, for kTileRows rows and
// kColumns columns.
template <int kTileRows, Order kOrderA, bool kPackedB>
__attribute__((noinline)) void multiply_panels(std::int64_t depth, const float* a,
                                               std::int64_t a_step, const float* b,
                                               std::int64_t b_step, float* c, std::int64_t ldc,
                                               bool add, const float* bias) {
  constexpr bool kRowMajor = kOrderA == Order::row_major;
  if (kOrderA == Order::packed) a_step = kRows;
  if (kPackedB) b_step = kColumns;
  // An address has one base and one scaled step, so three rows share a base.
  constexpr int kBases = kRowMajor ? (kTileRows + 2) / 3 : 1;
  const float* base[kBases];
#pragma GCC unroll 16
  for (int i = 0; i < kBases; ++i) base[i] = a + 3 * i * a_step;
  Vector<float> sum[kTileRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) sum[i][0] = sum[i][1] = Vector<float>{};
  // Adds step p, counted from the bases.
  const auto add_step = [&](int p) __attribute__((always_inline)) {
    const float* from = b + p * b_step;
    const Vector<float> b0 = load_vector(from), b1 = load_vector(from + kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const float factor = kRowMajor ? base[i / 3][i % 3 * a_step + p] : base[0][p * a_step + i];
      sum[i][0] += factor * b0;
      sum[i][1] += factor * b1;
    }
  };
  const auto advance = [&](int steps) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < kBases; ++i) base[i] += kRowMajor ? steps : steps * a_step;
    b += steps * b_step;
  };
  // Counting takes the units that multiply, so two steps share it.
  std::int64_t p = 0;
  const auto steps_until = [&](std::int64_t end, const auto& fetch) __attribute__((always_inline)) {
    for (; p + 2 <= end; p += 2) {
      if (kRowMajor && p % kLine == 0) {  // more streams than the processor foresees
#pragma GCC unroll 16
        for (int i = 0; i < kTileRows; ++i) {
          __builtin_prefetch(base[i / 3] + i % 3 * a_step + 2 * kLine);
        }
      }
      fetch();
      add_step(0);
      add_step(1);
      advance(2);
    }
  };
  // C is written at the end, and by then in the nearest cache.
  const float* written = c;
  steps_until(std::min<std::int64_t>(depth, 2 * kTileRows), [&] {
    __builtin_prefetch(written, 1);
    __builtin_prefetch(written + kLine, 1);
    written += ldc;
  });
  steps_until(depth, [] {});
  if (p < depth) add_step(0);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    float* row = c + i * ldc;
    if (add) {
      sum[i][0] += load_vector(row);
      sum[i][1] += load_vector(row + kWidth);
    }
    if (bias != nullptr) {
      sum[i][0] += load_vector(bias);
      sum[i][1] += load_vector(bias + kWidth);
    }
    store_vector(row, sum[i][0]);
    store_vector(row + kWidth, sum[i][1]);
  }
}

using MultiplyPanels = void (*)(std::int64_t depth, const float* a, std::int64_t a_step,
                                const float* b, std::int64_t b_step, float* c, std::int64_t ldc,
                                bool add, const float* bias);

// By [rows - 1]: a tile at the lower edge has fewer rows.
struct TileFunctions {
  MultiplyPanels of[kRows];
};
template <Order kOrderA, bool kPackedB, int... kIndices>
constexpr TileFunctions tile_functions(std::integer_sequence<int, kIndices...>) {
  return {{multiply_panels<kIndices + 1, kOrderA, kPackedB>...}};
}
template <Order kOrderA, bool kPackedB>
constexpr TileFunctions kTileFunctions =
    tile_functions<kOrderA, kPackedB>(std::make_integer_sequence<int, kRows>{});

template <Order kOrderA>
const TileFunctions& functions_of(const GemmTile& tile) {
  return tile.b.step == kColumns ? kTileFunctions<kOrderA, true> : kTileFunctions<kOrderA, false>;
}

const TileFunctions& functions_of(const GemmTile& tile) {
  if (tile.a.row_major) return functions_of<Order::row_major>(tile);
  return tile.a.step == kRows ? functions_of<Order::packed>(tile)
                              : functions_of<Order::strided>(tile);
}

void pack_a(const Gemm& gemm, std::int64_t row, std::int64_t rows, std::int64_t depth_begin,
            std::int64_t depth, float* packed) {
  const std::int64_t step_r = gemm.transpose_a ? 1 : gemm.lda;
  const std::int64_t step_p = gemm.transpose_a ? gemm.lda : 1;
  pack<kRows>(gemm.a, gemm.type_a, step_r, step_p, row, rows, depth_begin, depth, packed);
}

void pack_b(const Gemm& gemm, std::int64_t column, std::int64_t columns, std::int64_t depth_begin,
            std::int64_t depth, float* packed) {
  const std::int64_t step_r = gemm.transpose_b ? gemm.ldb : 1;
  const std::int64_t step_p = gemm.transpose_b ? 1 : gemm.ldb;
  pack<kColumns>(gemm.b, gemm.type_b, step_r, step_p, column, columns, depth_begin, depth, packed);
}

// A tile that crosses the right edge of C is computed whole beside it, then its valid part is
// copied.
void edge_tile(const Gemm& gemm, MultiplyPanels multiply, const GemmTile& tile, std::int64_t row,
               std::int64_t rows, std::int64_t column, const float* a, const float* b) {
  alignas(64) float beside[kRows * kColumns];
  multiply(tile.depth, a, tile.a.step, b, tile.b.step, beside, kColumns, false, nullptr);
  const std::int64_t columns = gemm.n - column;
  const float* bias = tile.first && gemm.bias != nullptr ? gemm.bias + column : nullptr;
  for (std::int64_t i = 0; i < rows; ++i) {
    float* c = static_cast<float*>(gemm.c) + (row + i) * gemm.ldc + column;
    for (std::int64_t j = 0; j < columns; ++j) {
      float value = beside[i * kColumns + j];
      if (!tile.first || gemm.accumulate) value += c[j];
      if (bias != nullptr) value += bias[j];
      c[j] = value;
    }
  }
}

void multiply_tile(const Gemm& gemm, const GemmTile& tile) {
  const TileFunctions& functions = functions_of(tile);
  const bool add = !tile.first || gemm.accumulate;
  const auto panels = [&](std::int64_t i, std::int64_t j) {
    const float* a = tile.a.data + i * tile.a.panel_step;
    const float* b = tile.b.data + j * tile.b.panel_step;
    const std::int64_t row = tile.row + i, column = tile.column + j;
    const std::int64_t rows = std::min<std::int64_t>(kRows, tile.rows - i);
    const MultiplyPanels multiply = functions.of[rows - 1];
    if (column + kColumns > gemm.n) {
      edge_tile(gemm, multiply, tile, row, rows, column, a, b);
      return;
    }
    const float* bias = tile.first && gemm.bias != nullptr ? gemm.bias + column : nullptr;
    multiply(tile.depth, a, tile.a.step, b, tile.b.step,
             static_cast<float*>(gemm.c) + row * gemm.ldc + column, gemm.ldc, add, bias);
  };
  if constexpr (kKeepsB) {
    for (std::int64_t j = 0; j < tile.columns; j += kColumns) {
      for (std::int64_t i = 0; i < tile.rows; i += kRows) panels(i, j);
    }
  } else {
    for (std::int64_t i = 0; i < tile.rows; i += kRows) {
      for (std::int64_t j = 0; j < tile.columns; j += kColumns) panels(i, j);
    }
  }
}

}  // namespace

void fill_gemm_kernels(KernelTable& table) {
  table.gemm_rows = kRows;
  table.gemm_columns = kColumns;
  table.gemm_depth = kDepth;
  table.gemm_pack_a = pack_a;
  table.gemm_pack_b = pack_b;
  table.gemm_tile = multiply_tile;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
