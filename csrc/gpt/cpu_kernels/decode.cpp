// Products of a few rows with a matrix that is read from memory once: what generation does for each
// token, where the speed of the memory is the limit and packing would cost more than the product.
// Every sum has one order, whatever rows and columns stand beside it.
#include <algorithm>

#include "cpu/kernels/vector.h"
#include "element/exponential.h"
#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Rows that share one visit of the matrix, and vectors of its columns beside each other: their sums
// have to stay in registers.
constexpr int kMostRows = 4;
template <int Rows>
constexpr int kVectors = Rows <= 2 || kVectorBytes == 64 ? 4 : 2;
constexpr std::int64_t kAhead = 16;  // rows of the matrix that are fetched ahead

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

// Columns [j, j + Vectors of F) of rows [r, r + Rows) of x matrix (+ bias) (+ residual).
template <class F, int Rows, int Vectors>
inline void column_tile(const RowProduct& p, std::int64_t r, std::int64_t j) {
  constexpr std::int64_t kLanes = sizeof(F) / sizeof(float);
  F sum[Rows][Vectors] = {};
  const float* x = p.x + r * p.x_stride;
  const float* matrix = p.matrix + j;
  for (std::int64_t k = 0; k < p.depth; ++k, matrix += p.matrix_stride) {
    F column[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      column[v] = load<F>(matrix + v * kLanes);
      __builtin_prefetch(matrix + kAhead * p.matrix_stride + v * kLanes);
    }
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const F factor = splat<F>(x[i * p.x_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        sum[i][v] = multiply_add(factor, column[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const std::int64_t column = j + v * kLanes;
      F value = sum[i][v];
      if (p.bias != nullptr) value += load<F>(p.bias + column);
      if (p.residual != nullptr) {
        value += load<F>(p.residual + (r + i) * p.residual_stride + column);
      }
      store(p.out + (r + i) * p.out_stride + column, value);
    }
  }
}

template <int Rows>
void row_group(const RowProduct& p, std::int64_t r, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kLanes = kLanesOf<float>, kWide = kVectors<Rows> * kLanes;
  std::int64_t j = begin;
  for (; j + kWide <= end; j += kWide) column_tile<Vector<float>, Rows, kVectors<Rows>>(p, r, j);
  for (; j + kLanes <= end; j += kLanes) column_tile<Vector<float>, Rows, 1>(p, r, j);
  for (; j < end; ++j) column_tile<float, Rows, 1>(p, r, j);
}

void rows_times_matrix(const RowProduct& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = 0; r < p.rows; r += kMostRows) {
    switch (std::min<std::int64_t>(kMostRows, p.rows - r)) {
      case 1:
        row_group<1>(p, r, begin, end);
        break;
      case 2:
        row_group<2>(p, r, begin, end);
        break;
      case 3:
        row_group<3>(p, r, begin, end);
        break;
      default:
        row_group<4>(p, r, begin, end);
    }
  }
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
  for (; j + kVectors<Rows> <= end; j += kVectors<Rows>) dot_tile<Rows, kVectors<Rows>>(p, r, j);
  for (; j < end; ++j) dot_tile<Rows, 1>(p, r, j);
}

void rows_dot_rows(const RowProduct& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = 0; r < p.rows; r += kMostRows) {
    switch (std::min<std::int64_t>(kMostRows, p.rows - r)) {
      case 1:
        dot_group<1>(p, r, begin, end);
        break;
      case 2:
        dot_group<2>(p, r, begin, end);
        break;
      case 3:
        dot_group<3>(p, r, begin, end);
        break;
      default:
        dot_group<4>(p, r, begin, end);
    }
  }
}

// softmax(scale * row) in place.
void softmax(float* row, std::int64_t size, float scale) {
  float maximum = -kInfinite<float>;
#pragma omp simd reduction(max : maximum)
  for (std::int64_t j = 0; j < size; ++j) maximum = row[j] > maximum ? row[j] : maximum;
  maximum *= scale;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < size; ++j) {
    row[j] = exp_nonpositive(multiply_add(row[j], scale, -maximum));
    sum += row[j];
  }
  const float inverse = 1.0f / sum;
#pragma omp simd
  for (std::int64_t j = 0; j < size; ++j) row[j] *= inverse;
}

}  // namespace

void fill_decode_kernels(GptKernelTable& table) {
  table.rows_times_matrix = rows_times_matrix;
  table.rows_dot_rows = rows_dot_rows;
  table.softmax = softmax;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
