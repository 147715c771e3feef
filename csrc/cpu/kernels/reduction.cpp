// Squares in double over 32 interleaved accumulators: element i belongs to accumulator i % 32 and
// the accumulators are added in order. The square of a float is exact in double, so the bits are
// the same for every instruction set.
#include "cpu/kernels/tables.h"
#include "cpu/kernels/vector.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr int kLanes = 32;
constexpr int kWidth = static_cast<int>(kLanesOf<double>);

// How many vectors of double a vector of T makes.
template <class T>
constexpr int kParts = static_cast<int>(kLanesOf<T>) / kWidth;

// load(i, parts) gives the vector of T at i as doubles, load_one(i) a number behind the last whole
// 32. Those that are written in the same visit come from registers: loading the halves of what was
// just stored made the visit up to three times as long on Zen 5.
template <class T, class Load, class LoadOne>
double sum_of_squares_of(std::int64_t size, const Load& load, const LoadOne& load_one) {
  using V = Vector<double>;
  constexpr int kPer = static_cast<int>(kLanesOf<T>);
  V sums[kLanes / kWidth] = {};
  const std::int64_t whole = size / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
#pragma GCC unroll 16
    for (int k = 0; k < kLanes / kPer; ++k) {
      V parts[kParts<T>];
      load(i + k * kPer, parts);
      for (int part = 0; part < kParts<T>; ++part) {
        V& sum = sums[k * kParts<T> + part];
        sum = sum + parts[part] * parts[part];
      }
    }
  }
  alignas(kVectorBytes) double lanes[kLanes];
  for (int k = 0; k < kLanes / kWidth; ++k) store_double(lanes + k * kWidth, sums[k]);
  for (std::int64_t i = whole; i < size; ++i) {
    const double value = load_one(i);
    lanes[i - whole] += value * value;
  }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

template <class T>
double sum_of_squares(const T* x, std::int64_t size) {
  return sum_of_squares_of<T>(
      size,
      [=](std::int64_t i, Vector<double>* parts) {
        for (int part = 0; part < kParts<T>; ++part) {
          parts[part] = load_double(x + i + part * kWidth);
        }
      },
      [=](std::int64_t i) { return static_cast<double>(x[i]); });
}

template <class T, bool kOverwrite>
double accumulate_all(T* totals, const T* src, std::int64_t size, T scale) {
  return sum_of_squares_of<T>(
      size,
      [=](std::int64_t i, Vector<double>* parts) {
        const Vector<T> added = load_vector(src + i), factor = splat<Vector<T>>(scale);
        const Vector<T> total =
            kOverwrite ? factor * added : multiply_add(factor, added, load_vector(totals + i));
        store_vector(totals + i, total);
        split_double(total, parts);
      },
      [=](std::int64_t i) {
        totals[i] = kOverwrite ? scale * src[i] : multiply_add(scale, src[i], totals[i]);
        return static_cast<double>(totals[i]);
      });
}

template <class T>
double accumulate(T* totals, const T* src, std::int64_t size, T scale, bool overwrite) {
  return overwrite ? accumulate_all<T, true>(totals, src, size, scale)
                   : accumulate_all<T, false>(totals, src, size, scale);
}

void column_sum(const float* x, std::int64_t row_stride, std::int64_t rows, std::int64_t columns,
                float* __restrict out, bool accumulate) {
  if (!accumulate) std::memset(out, 0, static_cast<std::size_t>(columns) * sizeof(float));
  std::int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const float* __restrict a = x + i * row_stride;
    const float* __restrict b = a + row_stride;
    const float* __restrict c = b + row_stride;
    const float* __restrict d = c + row_stride;
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
