// Squares in double over 32 interleaved accumulators: element i belongs to accumulator i % 32 and
// the accumulators are added in order. The square of a float is exact in double, so the bits are
// the same for every instruction set.
#include "cpu/kernels/tables.h"
#include "cpu/kernels/vector.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr int kLanes = 32;

// Before x[i .. i + count) is read, prepare(i, count) is called.
template <class T, class Prepare>
double sum_of_squares_of(const T* x, std::int64_t size, const Prepare& prepare) {
  using V = Vector<double>;
  constexpr int kWidth = static_cast<int>(kLanesOf<double>);
  V sums[kLanes / kWidth] = {};
  const std::int64_t whole = size / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    prepare(i, kLanes);
#pragma GCC unroll 16
    for (int k = 0; k < kLanes / kWidth; ++k) {
      const V value = load_double(x + i + k * kWidth);
      sums[k] = sums[k] + value * value;
    }
  }
  alignas(kVectorBytes) double lanes[kLanes];
  for (int k = 0; k < kLanes / kWidth; ++k) store_double(lanes + k * kWidth, sums[k]);
  prepare(whole, size - whole);
  for (std::int64_t i = whole; i < size; ++i) {
    const double value = x[i];
    lanes[i - whole] += value * value;
  }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

template <class T>
double sum_of_squares(const T* x, std::int64_t size) {
  return sum_of_squares_of(x, size, [](std::int64_t, std::int64_t) {});
}

template <class T>
double accumulate(T* __restrict totals, const T* __restrict src, std::int64_t size, T scale,
                  bool overwrite) {
  if (overwrite) {
    return sum_of_squares_of(totals, size, [=](std::int64_t begin, std::int64_t count) {
#pragma omp simd
      for (std::int64_t i = begin; i < begin + count; ++i) totals[i] = scale * src[i];
    });
  }
  return sum_of_squares_of(totals, size, [=](std::int64_t begin, std::int64_t count) {
#pragma omp simd
    for (std::int64_t i = begin; i < begin + count; ++i) {
      totals[i] = multiply_add(scale, src[i], totals[i]);
    }
  });
}

void column_sum(const float* x, std::int64_t row_stride, std::int64_t rows, std::int64_t columns,
                float* __restrict out, bool accumulate) {
  if (!accumulate) std::memset(out, 0, static_cast<std::size_t>(columns) * sizeof(float));
  std::int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const float* __restrict a = x + i * row_stride, * __restrict b = a + row_stride, * __restrict c = b + row_stride, * __restrict d = c + row_stride;
#pragma omp simd
    for (std::int64_t j = 0; j < columns; ++j) out[j] = out[j] + a[j] + b[j] + c[j] + d[j];
  }
  for (; i < rows; ++i) {
    const float* __restrict row = x + i * row_stride;
#pragma omp simd
    for (std::int64_t j = 0; j < columns; ++j) out[j] += row[j];
  }
}

template <class T>
void scale(T* x, std::int64_t size, const T* factors) {
  const T first = factors[0], second = factors[1];
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) x[i] = x[i] * first * second;
}

}  // namespace

void fill_reduction_kernels(KernelTable& table) {
  table.column_sum = column_sum;
  table.sum_of_squares_f32 = sum_of_squares<float>;
  table.sum_of_squares_f64 = sum_of_squares<double>;
  table.accumulate_f32 = accumulate<float>;
  table.accumulate_f64 = accumulate<double>;
  table.scale_f32 = scale<float>;
  table.scale_f64 = scale<double>;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
