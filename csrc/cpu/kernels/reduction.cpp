// Squares in double over 16 interleaved accumulators: element i belongs to accumulator i % 16 and
// the accumulators are added in order. The square of a float is exact in double, so the bits are
// the same for every instruction set.
#include "cpu/kernels/math.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr int kLanes = 16;

template <class T>
double sum_of_squares(const T* x, std::int64_t size) {
  double lanes[kLanes] = {};
  const std::int64_t whole = size / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (std::int64_t i = whole; i < size; ++i) {
    const double value = x[i];
    lanes[i - whole] += value * value;
  }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

void column_sum(const float* x, std::int64_t row_stride, std::int64_t rows, std::int64_t columns,
                float* __restrict out, bool accumulate) {
  if (!accumulate) std::memset(out, 0, static_cast<std::size_t>(columns) * sizeof(float));
  for (std::int64_t i = 0; i < rows; ++i) {
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
  table.scale_f32 = scale<float>;
  table.scale_f64 = scale<double>;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
