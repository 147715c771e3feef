// Stands in for cuBLAS where the CUDA backend runs in the emulator: plain loops, sums in float64 in
// the order of k, rounded once to float32 and from there to the result's type.
#include "cuda/blas.h"

#include <algorithm>
#include <vector>

#include "cuda/element.h"
#include "memory.h"

namespace flatstep::cuda {
namespace {

float element_of(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::bf16:
      return to_float(static_cast<const bf16_bits*>(data)[index]);
    case DType::f16:
      return to_float(static_cast<const f16_bits*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

void store(void* data, DType dtype, std::int64_t index, float value) {
  switch (dtype) {
    case DType::bf16:
      static_cast<bf16_bits*>(data)[index] = from_float<bf16_bits>(value);
      break;
    case DType::f16:
      static_cast<f16_bits*>(data)[index] = from_float<f16_bits>(value);
      break;
    default:
      static_cast<float*>(data)[index] = value;
  }
}

}  // namespace

void gemm(const Gemm& call, void*, std::size_t, cudaStream_t) {
  const emulator::DeviceMemoryInUse in_use;
  // The second factor by rows of k, so that the innermost loop runs along them.
  std::vector<double> b(static_cast<std::size_t>(call.k * call.n));
  for (std::int64_t p = 0; p < call.k; ++p) {
    for (std::int64_t j = 0; j < call.n; ++j) {
      const std::int64_t at = call.transpose_b ? j * call.ldb + p : p * call.ldb + j;
      b[static_cast<std::size_t>(p * call.n + j)] = element_of(call.b, call.type_b, at);
    }
  }
  std::vector<double> sums(static_cast<std::size_t>(call.n));
  for (std::int64_t i = 0; i < call.m; ++i) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::int64_t p = 0; p < call.k; ++p) {
      const std::int64_t at = call.transpose_a ? p * call.lda + i : i * call.lda + p;
      const double factor = element_of(call.a, call.type_a, at);
      const double* row = b.data() + p * call.n;
      for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += factor * row[j];
    }
    for (std::int64_t j = 0; j < call.n; ++j) {
      const std::int64_t at = i * call.ldc + j;
      double sum = sums[static_cast<std::size_t>(j)] * call.alpha;
      if (call.accumulate) sum += element_of(call.c, call.type_c, at);
      if (call.bias != nullptr) sum += call.bias[j];
      store(call.c, call.type_c, at, static_cast<float>(sum));
    }
  }
}

}  // namespace flatstep::cuda
