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

// Owned by whoever takes it; one of the two is null.
struct ExportedTensor {
  dlpack::ManagedTensor* legacy = nullptr;
  dlpack::ManagedTensorVersioned* versioned = nullptr;
};

// Raises TypeError or ValueError with the name for what is no array, for memory that is not the
// CPU's, and with what the exporter says where it refuses.
ExportedTensor export_tensor(py::handle object, const ArgumentName& name);

}  // namespace flatstep::python
