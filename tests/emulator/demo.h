// Kernels that use all that the device headers offer: they show how kernels are written, prove that
// the headers compile for every architecture, and are what the emulator is tested with.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace demo {

// Row sums of a matrix, one block a row.
void row_sums(const float* x, int rows, int columns, float* sums, cudaStream_t stream);

// The sum of x in one launch: the block that finishes last adds the others' partial sums in order.
// `ticket` is 0 before and after; `partial` has one element a block.
void sum_by_last_block(const float* x, std::int64_t size, unsigned blocks, double* partial,
                       unsigned* ticket, double* sum, cudaStream_t stream);

// Softmax of rows that are cut over the blocks of a cluster.
void cluster_softmax(const float* x, int rows, int columns, unsigned cluster, float* y,
                     cudaStream_t stream);

// bfloat16 or float16 numbers times a factor, 8 a thread; the size is a multiple of 8.
void scale(std::uint16_t* x, bool is_bf16, std::int64_t size, float factor, cudaStream_t stream);

// Every kind of exchange in a warp, 12 results a lane.
void exchanges(const int* x, long long* results, cudaStream_t stream);

}  // namespace demo
