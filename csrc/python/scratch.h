// Workspaces of calls.
#pragma once

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include <cstddef>
#include <new>

#include "flatstep/memory.h"

namespace flatstep::python {

// Memory of the device whose contents do not matter. Much of it comes in huge pages where the CPU's
// system has them: a page fault for each 4 KB would cost as much as a pass over the memory. On a
// CUDA device it is taken and given back in the order of the stream, which needs no wait.
class Scratch {
 public:
  Scratch(std::size_t bytes, const Device& device)
      : device_(device), alignment_{bytes < kHugePage ? 64 : kHugePage} {
    if (device.type != DeviceType::cpu) {
      memory_ = allocate(bytes, device);
      return;
    }
    memory_ = ::operator new(bytes, alignment_);
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(memory_, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Scratch() {
    if (device_.type == DeviceType::cpu) {
      ::operator delete(memory_, alignment_);
    } else {
      try {
        release(memory_, device_);
      } catch (...) {  // the call has failed before, with this reason
      }
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return memory_; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;
  const Device device_;
  const std::align_val_t alignment_;
  void* memory_;
};

}  // namespace flatstep::python
