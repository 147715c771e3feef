// The part of cuBLASLt that the matrix product calls. The library is neither linked nor needed to
// build: it is looked for at the first product (cublas_lt.cpp). So these are our own declarations
// of its C interface, with the names and values of its documentation ("Using the cuBLASLt API" in
// https://docs.nvidia.com/cuda/cublas), the same in CUDA 12 and 13.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace flatstep::cuda {

// cublasStatus_t
enum BlasStatus : int {
  kBlasSuccess = 0,
  kBlasNotInitialized = 1,
  kBlasAllocFailed = 3,
  kBlasInvalidValue = 7,
  kBlasArchMismatch = 8,
  kBlasExecutionFailed = 13,
  kBlasInternalError = 14,
  kBlasNotSupported = 15
};

// cudaDataType
enum BlasType : int { kBlasF32 = 0, kBlasF16 = 2, kBlasBf16 = 14 };

// cublasComputeType_t: float32 without TF32, whatever the inputs' type.
constexpr int kBlasCompute32F = 68;

// cublasOperation_t, int32_t
constexpr std::int32_t kBlasAsIs = 0, kBlasTransposed = 1;

// cublasLtMatmulDescAttributes_t
enum BlasProductAttribute : int {
  kBlasTransposeA = 3,   // int32_t
  kBlasTransposeB = 4,   // int32_t
  kBlasEpilogue = 7,     // uint32_t
  kBlasBiasPointer = 8,  // void*
};

// cublasLtEpilogue_t: adds a vector with one element for each row of the (column-major) result, of
// the result's type.
constexpr std::uint32_t kBlasEpilogueBias = 4;

// cublasLtMatmulPreferenceAttributes_t
enum BlasPreferenceAttribute : int {
  kBlasMaxWorkspaceBytes = 1,    // uint64_t
  kBlasReductionSchemeMask = 3,  // uint32_t
  kBlasAlignmentA = 5,           // uint32_t, bytes
  kBlasAlignmentB = 6,
  kBlasAlignmentC = 7,
  kBlasAlignmentD = 8,
};

// cublasLtReductionScheme_t: sums over parts of k meet in float32. (Others use the result's type.)
constexpr std::uint32_t kBlasReductionInComputeType = 2;

// cublasLtMatmulAlgo_t
struct BlasAlgorithm {
  std::uint64_t data[8];
};
static_assert(sizeof(BlasAlgorithm) == 64, "cublasLtMatmulAlgo_t");

// cublasLtMatmulHeuristicResult_t
struct BlasHeuristic {
  BlasAlgorithm algorithm;
  std::size_t workspace_bytes;
  int state;  // BlasStatus
  float waves;
  int reserved[4];
};
static_assert(sizeof(BlasHeuristic) == 96, "cublasLtMatmulHeuristicResult_t");

using BlasHandle = struct OpaqueBlasHandle*;          // cublasLtHandle_t
using BlasProduct = struct OpaqueBlasProduct*;        // cublasLtMatmulDesc_t
using BlasLayout = struct OpaqueBlasLayout*;          // cublasLtMatrixLayout_t
using BlasPreference = struct OpaqueBlasPreference*;  // cublasLtMatmulPreference_t

struct CublasLt {
  std::string path;  // of the library

  int (*create)(BlasHandle*);
  int (*product_create)(BlasProduct*, int compute_type, int scale_type);
  int (*product_destroy)(BlasProduct);
  int (*product_set)(BlasProduct, int attribute, const void* value, std::size_t bytes);
  int (*layout_create)(BlasLayout*, int type, std::uint64_t rows, std::uint64_t columns,
                       std::int64_t leading_dimension);
  int (*layout_destroy)(BlasLayout);
  int (*preference_create)(BlasPreference*);
  int (*preference_destroy)(BlasPreference);
  int (*preference_set)(BlasPreference, int attribute, const void* value, std::size_t bytes);
  int (*heuristic)(BlasHandle, BlasProduct, BlasLayout a, BlasLayout b, BlasLayout c, BlasLayout d,
                   BlasPreference, int requested, BlasHeuristic* results, int* count);
  int (*matmul)(BlasHandle, BlasProduct, const void* alpha, const void* a, BlasLayout,
                const void* b, BlasLayout, const void* beta, const void* c, BlasLayout, void* d,
                BlasLayout, const BlasAlgorithm*, void* workspace, std::size_t workspace_bytes,
                cudaStream_t);
};

// Finds the library at the first call; without it, throws RuntimeFailure with what to install and
// where it was looked for, and looks again at the next call.
const CublasLt& cublas_lt();

}  // namespace flatstep::cuda
