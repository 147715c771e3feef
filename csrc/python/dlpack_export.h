// What an array of another library exports through DLPack, and the names of arguments in messages.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "flatstep/types.h"
#include "python/dlpack_abi.h"

namespace flatstep::python {

namespace py = pybind11;

// "grads", or "grads[3]"; the text is only made for an error.
class ArgumentName {
 public:
  ArgumentName(const char* name) : name_(name) {}
  ArgumentName(std::string name) : name_(std::move(name)) {}
  ArgumentName(std::string list, std::size_t index)
      : name_(std::move(list)), index_(static_cast<std::int64_t>(index)) {}

  std::string text() const {
    return index_ < 0 ? name_ : name_ + "[" + std::to_string(index_) + "]";
  }

 private:
  std::string name_;
  std::int64_t index_ = -1;
};

[[noreturn]] void wrong_type(const ArgumentName& name, const std::string& got,
                             const std::string& expected);

// Where the arrays of a call must be, and the argument that decided it; without one, on the CPU.
struct Place {
  Device device;
  std::string like;
};

// Owned by whoever takes it; one of the two pointers is null.
struct ExportedTensor {
  dlpack::ManagedTensor* legacy = nullptr;
  dlpack::ManagedTensorVersioned* versioned = nullptr;
  Device device;
  // The library works on another stream than this: once it has the memory back, it may use it again
  // before the call has read it.
  bool wait_before_release = false;
};

// On a CUDA device, what the array's library has given to its stream is visible on that of the
// place; without a place, on that of the result, which is the library's current one.
// Raises TypeError or ValueError with the name for what is no array, for one that is elsewhere or
// on a device that is not to be had, and with what the exporter says where it refuses.
ExportedTensor export_tensor(py::handle object, const ArgumentName& name,
                             const Place* place = nullptr);

// "the CPU", or "cuda:1".
std::string device_text(const Device& device);

}  // namespace flatstep::python
