// Dropout, conversions and sums over rows on the device. Calls queue their work on the stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tasks.h"

namespace flatstep::cuda {

// Element i of the arrays has the mask's index first + i; out may be x.
void dropout(const DropoutTask& task, const float* x, float* out, std::int64_t size,
             std::int64_t first, cudaStream_t stream);
void dropout_mask(const DropoutTask& task, std::uint8_t* out, std::int64_t size, std::int64_t first,
                  cudaStream_t stream);

// f32 to bf16 or f16, rounded to nearest even, or back.
void convert(const ConstMatrix& from, void* to, DType to_dtype, std::int64_t to_row_stride,
             cudaStream_t stream);

// out[j] = alpha * sum over rows of x[i, j] in f32, row after row as on the CPU, or added to out
// with accumulate. x is f32, bf16 or f16; alpha a power of two.
void column_sum(const ConstMatrix& x, float alpha, float* out, bool accumulate,
                cudaStream_t stream);

}  // namespace flatstep::cuda
