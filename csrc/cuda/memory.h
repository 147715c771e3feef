// Memory of the device as objects that clean up after themselves.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "cuda/devices.h"

namespace flatstep::cuda {

// Errors of a release are dropped: they belong to work before it.
struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct FreeInOrder {
  cudaStream_t stream;
  void operator()(void* memory) const { cudaFreeAsync(memory, stream); }
};

// For long.
using DeviceMemory = std::unique_ptr<void, FreeDevice>;
// Of the host; the device can write it, too.
using PinnedMemory = std::unique_ptr<void, FreePinned>;
// From the present device's pool, for what the stream does next.
using StreamMemory = std::unique_ptr<void, FreeInOrder>;

inline DeviceMemory allocate_on_device(std::size_t bytes) {
  void* memory = nullptr;
  if (bytes > 0) check(cudaMalloc(&memory, bytes), "memory of the device");
  return DeviceMemory(memory);
}
inline PinnedMemory allocate_pinned(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "pinned memory");
  return PinnedMemory(memory);
}
inline StreamMemory allocate_on_stream(std::size_t bytes, cudaStream_t stream) {
  int device;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return StreamMemory(allocate(bytes, device, stream), FreeInOrder{stream});
}

// Copies a few numbers to the host once the stream has come that far.
template <class T>
T read_back(const T* from, cudaStream_t stream, const char* what) {
  T value;
  check(cudaMemcpyAsync(&value, from, sizeof value, cudaMemcpyDeviceToHost, stream), what);
  check(cudaStreamSynchronize(stream), what);
  return value;
}

}  // namespace flatstep::cuda
