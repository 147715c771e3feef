// Memory of the device, and which device is current, as objects that clean up after themselves.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "cuda/launch.h"

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
// From the stream's pool, where it is there for what the stream does next.
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
  void* memory = nullptr;
  if (bytes > 0) check(cudaMallocAsync(&memory, bytes, stream), "memory of the device");
  return StreamMemory(memory, FreeInOrder{stream});
}

// Makes a device current, as streams want it, and the one before again.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "the current device");
    if (device != before_) check(cudaSetDevice(device), "choice of a device");
    changed_ = device != before_;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Copies a few numbers to the host once the stream has come that far.
template <class T>
T read_back(const T* from, cudaStream_t stream, const char* what) {
  T value;
  check(cudaMemcpyAsync(&value, from, sizeof value, cudaMemcpyDeviceToHost, stream), what);
  check(cudaStreamSynchronize(stream), what);
  return value;
}

}  // namespace flatstep::cuda
