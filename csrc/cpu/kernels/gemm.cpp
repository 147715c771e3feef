// The inner part of the matrix product: packing into panels and the register tile, after Goto &
// van de Geijn, "Anatomy of high-performance matrix multiplication" (2008). The blocking over
// threads and cache is in cpu/gemm.cpp. This file is compiled with floating-point contraction, so
// that sum += a * b becomes one instruction where the machine has it.
#include <algorithm>

#include "cpu/kernels/element.h"
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
constexpr int kWidth = kLanesOf<float>;
constexpr int kColumns = 2 * kWidth;
// Elements of k in a panel. With AVX-512 a panel of B comes from the second-level cache, which
// keeps up; fewer visits of C matter more (bench/gemm.py).
constexpr std::int64_t kDepth = kVectorBytes == 64 ? 512 : 384;

typedef float Four __attribute__((vector_size(16)));
[[maybe_unused]] typedef int FourIndices __attribute__((vector_size(16)));

// Elements of two vectors in the order of the indices, which count through both.
#if defined(__clang__)
#  define FLATSTEP_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#  define FLATSTEP_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, FourIndices{i, j, k, l})
#endif

// c = a * b, plus what c holds with `add`, plus bias where it is not null.
__attribute__((noinline)) void multiply_panels(std::int64_t depth, const float* a, const float* b,
                                               float* c, std::int64_t ldc, bool add,
                                               const float* bias) {
  Vector<float> sum[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = Vector<float>{};
  for (std::int64_t p = 0; p < depth; ++p) {
    const Vector<float> b0 = load_vector(b), b1 = load_vector(b + kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] += a[i] * b0;
      sum[i][1] += a[i] * b1;
    }
    a += kRows;
    b += kColumns;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
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

// to[j * to_step + i] = from[i * from_step + j] for i, j < 4.
inline void transpose_four(const float* from, std::int64_t from_step, float* to,
                           std::int64_t to_step) {
  Four row[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&row[i], from + i * from_step, sizeof(Four));
  const Four a = FLATSTEP_SHUFFLE(row[0], row[2], 0, 4, 1, 5);
  const Four b = FLATSTEP_SHUFFLE(row[1], row[3], 0, 4, 1, 5);
  const Four c = FLATSTEP_SHUFFLE(row[0], row[2], 2, 6, 3, 7);
  const Four d = FLATSTEP_SHUFFLE(row[1], row[3], 2, 6, 3, 7);
  const Four column[4] = {FLATSTEP_SHUFFLE(a, b, 0, 4, 1, 5), FLATSTEP_SHUFFLE(a, b, 2, 6, 3, 7),
                          FLATSTEP_SHUFFLE(c, d, 0, 4, 1, 5), FLATSTEP_SHUFFLE(c, d, 2, 6, 3, 7)};
  for (int j = 0; j < 4; ++j) std::memcpy(to + j * to_step, &column[j], sizeof(Four));
}

constexpr std::int64_t kPackStretch = 64;

// packed[p * Panel + r] = x[r * step_r + p * step_p] for r < valid, else 0. One of the steps is 1.
template <int Panel>
void pack_panel(const float* x, std::int64_t step_r, std::int64_t step_p, std::int64_t valid,
                std::int64_t depth, float* packed) {
  if (valid == Panel && step_r == 1) {
    for (std::int64_t p = 0; p < depth; ++p) {
      std::memcpy(packed + p * Panel, x + p * step_p, Panel * sizeof(float));
    }
    return;
  }
  const std::int64_t whole_rows = step_p == 1 ? valid / 4 * 4 : 0;
  // A short stretch of k at a time, so that the lines being filled stay in the nearest cache.
  for (std::int64_t begin = 0; begin < depth; begin += kPackStretch) {
    const std::int64_t end = std::min(depth, begin + kPackStretch);
    const std::int64_t whole = begin + (end - begin) / 4 * 4;
    for (std::int64_t r = 0; r < whole_rows; r += 4) {
      const float* rows = x + r * step_r;
      for (std::int64_t p = begin; p < whole; p += 4) {
        transpose_four(rows + p, step_r, packed + p * Panel + r, Panel);
      }
      for (std::int64_t p = whole; p < end; ++p) {
        for (int i = 0; i < 4; ++i) packed[p * Panel + r + i] = rows[i * step_r + p];
      }
    }
    for (std::int64_t r = whole_rows; r < Panel; ++r) {
      for (std::int64_t p = begin; p < end; ++p) {
        packed[p * Panel + r] = r < valid ? x[r * step_r + p * step_p] : 0.0f;
      }
    }
  }
}

// The same for 16-bit numbers: a stretch at a time is converted, then packed.
template <int Panel, class T>
void pack_panel(const T* x, std::int64_t step_r, std::int64_t step_p, std::int64_t valid,
                std::int64_t depth, float* packed) {
  constexpr std::int64_t kStretch = 128;
  float converted[Panel * kStretch];
  if (step_r == 1) {
    for (std::int64_t p = 0; p < depth; ++p) {
      float* to = packed + p * Panel;
      for (std::int64_t r = 0; r < valid; ++r) to[r] = Element<T>::load(x[p * step_p + r]);
      std::fill(to + valid, to + Panel, 0.0f);
    }
    return;
  }
  for (std::int64_t begin = 0; begin < depth; begin += kStretch) {
    const std::int64_t size = std::min(kStretch, depth - begin);
    for (std::int64_t r = 0; r < valid; ++r) {
      const T* from = x + r * step_r + begin * step_p;
      for (std::int64_t p = 0; p < size; ++p) {
        converted[r * kStretch + p] = Element<T>::load(from[p * step_p]);
      }
    }
    pack_panel<Panel>(converted, kStretch, 1, valid, size, packed + begin * Panel);
  }
}

// Panels of x for `count` rows or columns of the product from `first` on.
template <int Panel>
void pack(const void* x, DType type, std::int64_t step_r, std::int64_t step_p, std::int64_t first,
          std::int64_t count, std::int64_t depth_begin, std::int64_t depth, float* packed) {
  const auto pack_typed = [&](const auto* typed) {
    for (std::int64_t i = 0; i < count; i += Panel, packed += Panel * depth) {
      pack_panel<Panel>(typed + (first + i) * step_r + depth_begin * step_p, step_r, step_p,
                        std::min<std::int64_t>(Panel, count - i), depth, packed);
    }
  };
  if (type == DType::bf16) {
    pack_typed(static_cast<const bf16_bits*>(x));
  } else if (type == DType::f16) {
    pack_typed(static_cast<const f16_bits*>(x));
  } else {
    pack_typed(static_cast<const float*>(x));
  }
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

// A tile that crosses the edge of C is computed whole beside it, then its valid part is copied.
void edge_tile(const Gemm& gemm, std::int64_t row, std::int64_t column, std::int64_t depth,
               const float* a, const float* b, bool add, const float* bias) {
  alignas(64) float tile[kRows * kColumns];
  multiply_panels(depth, a, b, tile, kColumns, false, nullptr);
  const std::int64_t rows = std::min<std::int64_t>(kRows, gemm.m - row);
  const std::int64_t columns = std::min<std::int64_t>(kColumns, gemm.n - column);
  for (std::int64_t i = 0; i < rows; ++i) {
    float* c = static_cast<float*>(gemm.c) + (row + i) * gemm.ldc + column;
    for (std::int64_t j = 0; j < columns; ++j) {
      float value = tile[i * kColumns + j];
      if (add) value += c[j];
      if (bias != nullptr) value += bias[j];
      c[j] = value;
    }
  }
}

void tile(const Gemm& gemm, std::int64_t row, std::int64_t rows, std::int64_t column,
          std::int64_t columns, std::int64_t depth, const float* packed_a, const float* packed_b,
          bool first) {
  const bool add = !first || gemm.accumulate;
  for (std::int64_t j = 0; j < columns; j += kColumns) {
    const float* b = packed_b + j * depth;
    const float* bias = first && gemm.bias != nullptr ? gemm.bias + column + j : nullptr;
    for (std::int64_t i = 0; i < rows; i += kRows) {
      const float* a = packed_a + i * depth;
      if (row + i + kRows <= gemm.m && column + j + kColumns <= gemm.n) {
        multiply_panels(depth, a, b,
                        static_cast<float*>(gemm.c) + (row + i) * gemm.ldc + column + j, gemm.ldc,
                        add, bias);
      } else {
        edge_tile(gemm, row + i, column + j, depth, a, b, add, bias);
      }
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
  table.gemm_tile = tile;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
