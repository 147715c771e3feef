// Workspaces of calls.
#pragma once

#include <cstddef>

#include "flatstep/memory.h"

namespace flatstep::python {

// Memory of a device whose contents do not matter. On a CUDA device it is taken and given back in
// the order of the stream, which needs no wait.
class Scratch {
 public:
  explicit Scratch(const Device& device = {}) : device_(device) {}
  Scratch(std::size_t bytes, const Device& device) : device_(device) { at_least(bytes); }
  ~Scratch() {
    try {
      free();
    } catch (...) {  // the call has failed before, with this reason
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Grows to the largest request.
  void* at_least(std::size_t bytes) {
    if (memory_ == nullptr || bytes > bytes_) {
      free();
      memory_ = allocate(bytes, device_);
      bytes_ = bytes;
    }
    return memory_;
  }

  void* data() const { return memory_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void free() {
    void* memory = memory_;
    memory_ = nullptr;
    bytes_ = 0;
    release(memory, device_);
  }

  const Device device_;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace flatstep::python
