// The devices of this process: which there are, what they can do, and their memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/launch.h"
#include "flatstep/types.h"

namespace flatstep::cuda {

// Makes a device the present one for a scope.
class OnDevice {
 public:
  explicit OnDevice(int index) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = index != before_;
    if (changed_) check(cudaSetDevice(index), "cudaSetDevice");
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Throws RuntimeFailure with the reason where there is no such device.
void require_device(const Device& device);

// How many blocks a cluster may have on the device; 1 where it knows no clusters.
int largest_cluster(int index);
// The most shared memory that a block may have.
int shared_bytes_of_block(int index);

// From a pool of our own that keeps what was released: the default pool gives it back to the system
// whenever anybody waits.
void* allocate(std::size_t bytes, int index, cudaStream_t stream);

}  // namespace flatstep::cuda
