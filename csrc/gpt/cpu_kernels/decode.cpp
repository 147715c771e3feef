// Products of a few rows with a matrix that is read from memory once: what generation does for each
// token, where the speed of the memory is the limit and packing would cost more than the product.
// Every sum has one order, whatever rows and columns stand beside it.
#include <algorithm>
#include <type_traits>

#include "cpu/kernels/vector.h"
#include "gpt/cpu_kernels/softmax.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Rows of x that share one visit of the matrix, and columns of a dot product beside each other:
// their sums have to stay in registers.
constexpr int kMostRows = 4;
template <int Rows>
constexpr int kColumns = Rows <= 2 || kVectorBytes == 64 ? 4 : 2;
constexpr int kDepth = 4;  // rows of the matrix that one visit of the sums adds

// Calls visit(size, row) for groups of at most that many rows; the size is a type's value.
template <class Visit>
inline void for_each_group(std::int64_t rows, const Visit& visit) {
  for (std::int64_t r = 0; r < rows; r += kMostRows) {
    switch (std::min<std::int64_t>(kMostRows, rows - r)) {
      case 1:
        visit(std::integral_constant<int, 1>(), r);
        break;
      case 2:
        visit(std::integral_constant<int, 2>(), r);
        break;
      case 3:
        visit(std::integral_constant<int, 3>(), r);
        break;
      default:
        visit(std::integral_constant<int, kMostRows>(), r);
    }
  }
}

// F is Vector<float> or float.
template <class F>
inline F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class F>
inline void store(float* p, F v) {
  std::memcpy(p, &v, sizeof v);
}

// Elements of x, one in all lanes; where registers are many they stay there.
template <class F, int Rows, int Depth>
struct Factors {
  F at[Rows][Depth];

  Factors(const RowProduct& p, const float* x, std::int64_t k) {
    for (int i = 0; i < Rows; ++i) {
      for (int d = 0; d < Depth; ++d) at[i][d] = splat<F>(x[i * p.x_stride + k + d]);
    }
  }
};

// out[i] (+)= x[i, k] matrix[k], from column j on, for Rows rows and Depth rows of the matrix.
template <class F, int Rows, int Depth>
inline void add_products(const RowProduct& p, const Factors<F, Rows, Depth>& x, std::int64_t k,
                         std::int64_t j, float* out) {
  F row[Depth];
#pragma GCC unroll 4
  for (int d = 0; d < Depth; ++d) row[d] = load<F>(p.matrix + (k + d) * p.matrix_stride + j);
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
    float* to = out + i * p.out_stride + j;
    F sum = k == 0 ? F{} : load<F>(to);
#pragma GCC unroll 4
    for (int d = 0; d < Depth; ++d) sum = multiply_add(x.at[i][d], row[d], sum);
    store(to, sum);
  }
}

// The matrix is read in long stretches of a few rows, which the processor fetches ahead by itself;
// the sums stay in the nearest cache.
template <int Rows, int Depth>
inline void add_rows(const RowProduct& p, const float* x, std::int64_t k, std::int64_t begin,
                     std::int64_t end, float* out) {
  using Lanes = Vector<float>;
  constexpr std::int64_t kLanes = kLanesOf<float>;
  const Factors<Lanes, Rows, Depth> factors(p, x, k);
  std::int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) add_products<Lanes, Rows, Depth>(p, factors, k, j, out);
  if (j == end) return;
  const Factors<float, Rows, Depth> single(p, x, k);
  for (; j < end; ++j) add_products<float, Rows, Depth>(p, single, k, j, out);
}

template <int Rows>
void row_group(const RowProduct& p, std::int64_t r, std::int64_t begin, std::int64_t end) {
  const float* x = p.x + r * p.x_stride;
  float* out = p.out + r * p.out_stride;
  std::int64_t k = 0;
  for (; k + kDepth <= p.depth; k += kDepth) add_rows<Rows, kDepth>(p, x, k, begin, end, out);
  for (; k < p.depth; ++k) add_rows<Rows, 1>(p, x, k, begin, end, out);
}

void rows_times_matrix(const RowProduct& p, std::int64_t begin, std::int64_t end) {
  for_each_group(p.rows, [&](auto size, std::int64_t r) {
    row_group<decltype(size)::value>(p, r, begin, end);
  });
}

// The lanes of a vector, pairwise.
inline float sum_of_lanes(Vector<float> v) {
  float lanes[kLanesOf<float>];
  store(lanes, v);
  for (std::int64_t half = kLanesOf<float> / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// out[r, j] = sum over k of x[r, k] matrix[j, k] for Rows rows and Columns rows of the matrix.
template <int Rows, int Columns>
inline void dot_tile(const RowProduct& p, std::int64_t r, std::int64_t j) {
  constexpr std::int64_t kLanes = kLanesOf<float>;
  const float* x = p.x + r * p.x_stride;
  const float* matrix = p.matrix + j * p.matrix_stride;
  Vector<float> sum[Rows][Columns] = {};
  std::int64_t k = 0;
  for (; k + kLanes <= p.depth; k += kLanes) {
    Vector<float> column[Columns];
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) column[c] = load_vector(matrix + c * p.matrix_stride + k);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const Vector<float> row = load_vector(x + i * p.x_stride + k);
#pragma GCC unroll 4
      for (int c = 0; c < Columns; ++c) sum[i][c] = multiply_add(row, column[c], sum[i][c]);
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int c = 0; c < Columns; ++c) {
      float total = sum_of_lanes(sum[i][c]);
      for (std::int64_t tail = k; tail < p.depth; ++tail) {
        total = multiply_add(x[i * p.x_stride + tail], matrix[c * p.matrix_stride + tail], total);
      }
      p.out[(r + i) * p.out_stride + j + c] = total;
    }
  }
}

template <int Rows>
void dot_group(const RowProduct& p, std::int64_t r, std::int64_t begin, std::int64_t end) {
  std::int64_t j = begin;
  for (; j + kColumns<Rows> <= end; j += kColumns<Rows>) dot_tile<Rows, kColumns<Rows>>(p, r, j);
  for (; j < end; ++j) dot_tile<Rows, 1>(p, r, j);
}

void rows_dot_rows(const RowProduct& p, std::int64_t begin, std::int64_t end) {
  for_each_group(p.rows, [&](auto size, std::int64_t r) {
    dot_group<decltype(size)::value>(p, r, begin, end);
  });
}

}  // namespace

void fill_decode_kernels(GptKernelTable& table) {
  table.rows_times_matrix = rows_times_matrix;
  table.rows_dot_rows = rows_dot_rows;
  table.softmax = softmax;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
