#include "cuda/bias.h"

#include "cuda/device.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr std::int64_t kColumns = 1024;  // a block's part of a row
constexpr std::int64_t kBlocks = 65536;  // each takes every 65536th part

template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_kernel(T* c, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                const float* bias, bool keep) {
  const std::int64_t parts = (columns + kColumns - 1) / kColumns;
  for (std::int64_t part = blockIdx.x; part < rows * parts; part += gridDim.x) {
    T* row = c + part / parts * stride;
    const std::int64_t begin = part % parts * kColumns;
    const std::int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
    for (std::int64_t j = begin + threadIdx.x; j < end; j += blockDim.x) {
      const float before = keep ? to_float(row[j]) : 0.0f;
      row[j] = from_float<T>(before + (bias == nullptr ? 0.0f : bias[j]));
    }
  }
}

template <class T>
void run(const Gemm& call, bool keep, cudaStream_t stream) {
  const std::int64_t parts = call.m * ((call.n + kColumns - 1) / kColumns);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(parts < kBlocks ? parts : kBlocks);
  shape.block = kThreads;
  launch(bias_kernel<T>, shape, stream, static_cast<T*>(call.c), call.m, call.n, call.ldc,
         call.bias, keep);
}

}  // namespace

void add_bias(const Gemm& call, bool keep, cudaStream_t stream) {
  switch (call.type_c) {
    case DType::bf16:
      return run<bf16_bits>(call, keep, stream);
    case DType::f16:
      return run<f16_bits>(call, keep, stream);
    default:
      return run<float>(call, keep, stream);
  }
}

}  // namespace flatstep::cuda
