// What the calls of the fake runtime share: how errors are kept, and what streams allow.
#pragma once

#include "cuda_runtime.h"

namespace emulator {

// Keeps an error for cudaGetLastError.
cudaError_t result(cudaError_t error);
inline cudaError_t require(bool holds, cudaError_t error) {
  return result(holds ? cudaSuccess : error);
}

// Whether a call may wait for the device now: not while a stream captures.
cudaError_t at_once();
bool is_pool(cudaMemPool_t pool);

}  // namespace emulator
