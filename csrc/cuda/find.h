// The first element of a chunk that is too large, by a whole block of threads.
#pragma once

#include "cuda/device.h"
#include "cuda/tensors.h"

namespace flatstep::cuda {

constexpr unsigned kNotFound = static_cast<unsigned>(kChunk);

// Its index, or kNotFound, for every thread; `lowest` is in shared memory.
template <class T>
__device__ __forceinline__ unsigned first_in_chunk(const T* x, int size, double limit,
                                                   unsigned& lowest) {
  if (threadIdx.x == 0) lowest = kNotFound;
  __syncthreads();
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(size); i += blockDim.x) {
    if (fabs(static_cast<double>(to_float(x[i]))) <= limit) continue;
    atomicMin(&lowest, i);
    break;
  }
  __syncthreads();
  return lowest;
}

}  // namespace flatstep::cuda
