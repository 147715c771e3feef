// The table of CPU kernels that is compiled once per instruction set. Only data here: an inline
// function in this header would be emitted by every instruction set's object, and the linker could
// keep the wrong one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tasks.h"

namespace flatstep::cpu {

// Element types of kernel pointers; bf16 is the upper half of an f32.
using bf16_bits = std::uint16_t;

template <class T>
using UpdateFunction = void (*)(T* param, T* grad, T* state1, T* state2, std::int64_t size,
                                const UpdateScalars<T>& scalars);

struct KernelTable {
  const char* isa;

  // Rows [begin, end); returns the sum of their losses.
  double (*cross_entropy_f32)(const CrossEntropyRows&, std::int64_t begin, std::int64_t end);
  double (*cross_entropy_f64)(const CrossEntropyRows&, std::int64_t begin, std::int64_t end);
  double (*cross_entropy_bf16)(const CrossEntropyRows&, std::int64_t begin, std::int64_t end);

  double (*sum_of_squares_f32)(const float*, std::int64_t size);
  double (*sum_of_squares_f64)(const double*, std::int64_t size);
  // x = x * factors[0] * factors[1]
  void (*scale_f32)(float*, std::int64_t size, const float* factors);
  void (*scale_f64)(double*, std::int64_t size, const double* factors);

  // By [algorithm][mode], in the order of the public enums.
  UpdateFunction<float> update_f32[3][2];
  UpdateFunction<double> update_f64[3][2];

  // multipliers[i] = kept ? scale : 0 for indices first .. first + size - 1.
  void (*dropout_multipliers)(const DropoutTask&, std::int64_t first, std::int64_t size,
                              float* multipliers);

  // Packed panels: A in gemm_rows x k, B in k x gemm_columns; edges are padded with zeros.
  std::int64_t gemm_rows, gemm_columns, gemm_depth;
  void (*gemm_pack_a)(const Gemm&, std::int64_t row, std::int64_t rows, std::int64_t depth_begin,
                      std::int64_t depth, float* packed);
  void (*gemm_pack_b)(const Gemm&, std::int64_t column, std::int64_t columns,
                      std::int64_t depth_begin, std::int64_t depth, float* packed);
  // The tile of C at (row, column) from panels packed over `depth`. `first` says that this is the
  // first stretch of k: C is overwritten unless accumulate, and the bias is added.
  void (*gemm_tile)(const Gemm&, std::int64_t row, std::int64_t rows, std::int64_t column,
                    std::int64_t columns, std::int64_t depth, const float* packed_a,
                    const float* packed_b, bool first);
};

}  // namespace flatstep::cpu
