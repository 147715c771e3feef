// Matrix products on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "core/tasks.h"

namespace flatstep::cuda {

// What a product makes good use of; it can do with less.
constexpr std::size_t kGemmWorkspaceBytes = std::size_t{32} << 20;

// Queues a product of f32 x f32 to f32, or of bf16 x bf16 or f16 x f16 to f32 or that type, with
// sums in float32 (never TF32). The workspace may be null with 0 bytes. The same call gives the
// same bits on the same device and version of cuBLAS; other alignments or another size of workspace
// may choose another order of the sums.
void gemm(const Gemm& call, void* workspace, std::size_t workspace_bytes, cudaStream_t stream);

}  // namespace flatstep::cuda
