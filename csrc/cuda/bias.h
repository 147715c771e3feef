// What a product leaves to be done where the library that computes it cannot.
#pragma once

#include <cuda_runtime.h>

#include "core/tasks.h"

namespace flatstep::cuda {

// c[i, j] = (keep ? c[i, j] : 0) + bias[j], with no bias for a null pointer, over the c of a
// product.
void add_bias(const Gemm& call, bool keep, cudaStream_t stream);

}  // namespace flatstep::cuda
