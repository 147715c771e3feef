// The table of CPU kernels that is compiled once per instruction set. Only data here: an inline
// function in this header would be emitted by every instruction set's object, and the linker could
// keep the wrong one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/rounding.h"
#include "core/tasks.h"

namespace flatstep::cpu {

// Element types of kernel pointers; bf16 is the upper half of an f32.
enum class bf16_bits : std::uint16_t {};
enum class f16_bits : std::uint16_t {};

template <class T>
using UpdateFunction = void (*)(const UpdateArrays<T>& arrays, std::int64_t size,
                                const UpdateScalars<T>& scalars);

struct CrossEntropyKernels {
  // Rows [begin, end).
  CrossEntropySums (*rows)(const CrossEntropyRows&, std::int64_t begin, std::int64_t end,
                           const CrossEntropyScratch&);
  // The same for one row in three parts, of which the first and the last may run at the same time
  // on different blocks of classes. `prepare` is false for an ignored row, which needs no more.
  bool (*prepare)(const CrossEntropyRows&, std::int64_t row, CrossEntropyGroup&);
  void (*sum_blocks)(const CrossEntropyRows&, const CrossEntropyGroup&, std::int64_t begin,
                     std::int64_t end, const CrossEntropyScratch&);
  CrossEntropySums (*finish)(const CrossEntropyRows&, CrossEntropyGroup&,
                             const CrossEntropyScratch&);
  void (*write_gradient)(const CrossEntropyRows&, const CrossEntropyGroup&, std::int64_t begin,
                         std::int64_t end, const CrossEntropyScratch&);
};

// Where the kernel of the matrix product finds A or B: row or column i of the product, a multiple
// of the panel's size, begins at data + i * panel_step. From there on element p of row r of A is at
// r * step + p with row_major, else at r + p * step, as it always is for B.
struct GemmOperand {
  const float* data;
  std::int64_t panel_step, step;
  bool row_major;
};

// The tile of C at (row, column), over one stretch of k. `first` says that it is the first stretch:
// C is overwritten unless accumulate, and the bias is added.
struct GemmTile {
  std::int64_t row, rows, column, columns, depth;
  GemmOperand a, b;  // of this tile
  bool first;
};

struct KernelTable {
  const char* isa;

  CrossEntropyKernels cross_entropy_f32, cross_entropy_f64, cross_entropy_bf16, cross_entropy_f16;

  // out[j] = sum over rows of x[i, j], or added to out with accumulate.
  void (*column_sum)(const float* x, std::int64_t row_stride, std::int64_t rows,
                     std::int64_t columns, float* out, bool accumulate);
  void (*widen_bf16)(const bf16_bits* from, std::int64_t size, float* to);
  void (*widen_f16)(const f16_bits* from, std::int64_t size, float* to);
  void (*narrow_bf16)(const float* from, std::int64_t size, bf16_bits* to);
  void (*narrow_f16)(const float* from, std::int64_t size, f16_bits* to);

  double (*sum_of_squares_f32)(const float*, std::int64_t size);
  double (*sum_of_squares_f64)(const double*, std::int64_t size);
  // x = x * factors[0] * factors[1]
  void (*scale_f32)(float*, std::int64_t size, const float* factors);
  void (*scale_f64)(double*, std::int64_t size, const double* factors);

  // totals = fma(scale, src, totals), or scale * src with overwrite; returns the sum of squares.
  double (*accumulate_f32)(float* totals, const float* src, std::int64_t size, float scale,
                           bool overwrite);
  double (*accumulate_f64)(double* totals, const double* src, std::int64_t size, double scale,
                           bool overwrite);

  // By [algorithm][rounding], in the order of the enums.
  UpdateFunction<float> update_f32[3][3];
  UpdateFunction<double> update_f64[3][3];

  // By [algorithm].
  void (*update_low_bit[3])(const LowBitArrays& arrays, std::int64_t size,
                            const UpdateScalars<float>& scalars);
  // 16 random bits for each element from `first` on; both are multiples of 128.
  void (*rounding_bits)(const RoundingKey&, std::int64_t first, std::int64_t size,
                        std::uint16_t* bits);
  void (*round_to_bf16)(const float* from, const std::uint16_t* bits, std::int64_t size,
                        bf16_bits* to);

  // multipliers[i] = kept ? scale : 0 for indices first .. first + size - 1.
  void (*dropout_multipliers)(const DropoutTask&, std::int64_t first, std::int64_t size,
                              float* multipliers);

  // Packed panels: A in gemm_rows x k, B in k x gemm_columns; edges are padded with zeros.
  std::int64_t gemm_rows, gemm_columns, gemm_depth;
  void (*gemm_pack_a)(const Gemm&, std::int64_t row, std::int64_t rows, std::int64_t depth_begin,
                      std::int64_t depth, float* packed);
  void (*gemm_pack_b)(const Gemm&, std::int64_t column, std::int64_t columns,
                      std::int64_t depth_begin, std::int64_t depth, float* packed);
  void (*gemm_tile)(const Gemm&, const GemmTile&);
};

}  // namespace flatstep::cpu
