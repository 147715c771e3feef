#include "host_api.h"

#include <cstdio>

#include "host_calls.h"
#include "memory.h"

namespace {

using emulator::result, emulator::require;

constexpr int kVersion = 13000;
constexpr std::size_t kSharedBytes = 48 * 1024;
constexpr std::size_t kSharedBytesOfMultiprocessor = 228 * 1024;

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

cudaError_t emulator::result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define FLATSTEP_NAME(value) \
  case value:                \
    return #value;
    FLATSTEP_NAME(cudaSuccess)
    FLATSTEP_NAME(cudaErrorInvalidValue)
    FLATSTEP_NAME(cudaErrorMemoryAllocation)
    FLATSTEP_NAME(cudaErrorInvalidDevicePointer)
    FLATSTEP_NAME(cudaErrorInvalidMemcpyDirection)
    FLATSTEP_NAME(cudaErrorInsufficientDriver)
    FLATSTEP_NAME(cudaErrorNoDevice)
    FLATSTEP_NAME(cudaErrorInvalidDevice)
    FLATSTEP_NAME(cudaErrorInvalidResourceHandle)
    FLATSTEP_NAME(cudaErrorNotReady)
    FLATSTEP_NAME(cudaErrorNotSupported)
    FLATSTEP_NAME(cudaErrorStreamCaptureUnsupported)
    FLATSTEP_NAME(cudaErrorStreamCaptureUnmatched)
#undef FLATSTEP_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return require(device == 0, cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device");
  properties->totalGlobalMem = emulator::memory_limit();
  properties->sharedMemPerBlock = kSharedBytes;
  properties->sharedMemPerBlockOptin = emulator::kSharedBytesOfBlock;
  properties->sharedMemPerMultiprocessor = kSharedBytesOfMultiprocessor;
  properties->reservedSharedMemPerBlock = 1024;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->major = 9;
  properties->minor = 0;
  properties->multiProcessorCount = 4;
  properties->l2CacheSize = 1 << 20;
  properties->memoryPoolsSupported = properties->unifiedAddressing = 1;
  properties->concurrentKernels = 1;
  properties->memoryBusWidth = 512;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(properties.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = properties.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = properties.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrClusterLaunch:
      *value = 1;
      break;
    default:
      return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
