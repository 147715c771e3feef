// Memory of a device as an array: what flatstep.DeviceArray is made of.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "flatstep/types.h"
#include "python/dlpack_abi.h"

namespace flatstep::python {

namespace py = pybind11;

// Contiguous. The memory lives as long as an array or an export that shares it, and belongs to one
// stream at a time: the legacy default stream at first, then that of the last call that used it.
class DeviceArray {
 public:
  DeviceArray(std::vector<std::int64_t> shape, DType dtype, const Device& device);
  // The same memory in another shape of as many elements.
  DeviceArray(const DeviceArray& other, std::vector<std::int64_t> shape);

  // The array that a Python object is, or null.
  static DeviceArray* from(py::handle object);

  const std::vector<std::int64_t>& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  const Device& device() const;
  std::int64_t bytes() const;

  // Waits where the memory belongs to another stream, which it then leaves.
  void go_to(std::uintptr_t stream);
  // Waits unless a reader on `stream`, as DLPack numbers it, comes after the work so far.
  void make_visible(std::int64_t stream) const;

  dlpack::ManagedTensorVersioned* export_versioned() const;
  py::capsule capsule(bool versioned) const;

 private:
  struct Memory;
  template <class Managed>
  struct Export;
  template <class Managed>
  Managed* export_as() const;

  std::shared_ptr<Memory> memory_;
  std::vector<std::int64_t> shape_;
  DType dtype_;
};

}  // namespace flatstep::python
