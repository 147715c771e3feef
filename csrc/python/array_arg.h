// Arrays that come in from Python through DLPack: NumPy, PyTorch, JAX, CuPy and others alike.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "flatstep/types.h"
#include "python/dlpack_export.h"

namespace flatstep::python {

enum class Access { read, write };

// Holds the exporter's memory for its lifetime; destroy it with the GIL held. Every error names
// the argument and is a TypeError (what it is) or a ValueError (its device, shape, layout, flags).
//
// All arrays of a call are on one device, and the call runs on one stream there: the first array
// decides, and gives the others their place.
class ArrayArg {
 public:
  ArrayArg(py::handle object, ArgumentName name, Access access, const Place* place = nullptr);
  ~ArrayArg();
  ArrayArg(ArrayArg&& other) noexcept;
  ArrayArg(const ArrayArg&) = delete;
  ArrayArg& operator=(const ArrayArg&) = delete;

  std::string name() const { return name_.text(); }
  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  const Device& device() const { return exported_.device; }
  Place place() const { return {device(), name()}; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t size() const { return size_; }
  bool contiguous() const;

  void require_dtype(DType wanted) const;
  void require_contiguous() const;
  void require_shape(const std::vector<std::int64_t>& wanted) const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  // visit(offset in elements) for every element in row-major order.
  template <class Visit>
  void for_each_offset(Visit visit) const {
    std::vector<std::int64_t> index(shape_.size(), 0);
    for (std::int64_t n = 0; n < size_; ++n) {
      std::int64_t offset = 0;
      for (std::size_t i = 0; i < index.size(); ++i) offset += index[i] * strides_[i];
      visit(offset);
      for (std::size_t i = index.size(); i-- > 0 && ++index[i] == shape_[i];) index[i] = 0;
    }
  }

  // The array as rows x cols with the last dimension contiguous and one stride between rows.
  ConstMatrix matrix() const;

 private:
  void release();

  ArgumentName name_;
  ExportedTensor exported_;
  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;
  std::int64_t size_ = 1;
};

// Class or token ids as an IndexArray. Those that are not contiguous are copied on the CPU, and
// refused on other devices.
class IndexArg {
 public:
  IndexArg(py::handle object, const std::string& name, const Place& place);
  IndexArray array() const;
  const std::vector<std::int64_t>& shape() const { return array_.shape(); }

 private:
  ArrayArg array_;
  std::vector<std::int64_t> copy_;
};

std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace flatstep::python
