// Device memory for tests; the host sees it by copies.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "cuda/launch.h"

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    flatstep::cuda::check(cudaMalloc(&data_, size * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) {
    flatstep::cuda::check(cudaMemcpy(data_, from.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
                          "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> to(size_);
    flatstep::cuda::check(cudaMemcpy(to.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
                          "cudaMemcpy");
    return to;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};
