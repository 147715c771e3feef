#include "python/array_arg.h"

#include <algorithm>
#include <utility>

#include "core/checks.h"

namespace flatstep::python {
namespace {

[[noreturn]] void wrong_type(const std::string& name, const std::string& got,
                             const std::string& expected) {
  throw py::type_error(name + ": got " + got + ", expected " + expected);
}

std::string type_name(py::handle object) {
  return py::cast<std::string>(py::type::of(object).attr("__name__"));
}

// What the protocol is called by, made once: a call per array is a noticeable part of a small loss.
struct Protocol {
  PyObject* dlpack = PyUnicode_InternFromString("__dlpack__");
  PyObject* device = PyUnicode_InternFromString("__dlpack_device__");
  PyObject* keywords = py::make_tuple("max_version").release().ptr();
  PyObject* version = py::make_tuple(1, 0).release().ptr();
};

const Protocol& protocol() {
  static const Protocol* const names = new Protocol;  // outlives the interpreter's last call
  return *names;
}

// object.method(), with the version unless that is null.
py::object call_method(py::handle object, PyObject* method, PyObject* version) {
  PyObject* arguments[] = {object.ptr(), version};
  PyObject* result = PyObject_VectorcallMethod(method, arguments, 1,
                                               version != nullptr ? protocol().keywords : nullptr);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// The DLPack capsule; exporters older than version 1 do not know max_version.
py::capsule export_capsule(py::handle object, const std::string& name) {
  try {
    try {
      return call_method(object, protocol().dlpack, protocol().version);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      return call_method(object, protocol().dlpack, nullptr);
    }
  } catch (py::error_already_set& error) {
    // What the exporter says (a tensor that requires grad, a byte-swapped array), with the name.
    throw py::value_error(name + ": " + std::string(py::str(error.value())));
  }
}

Device device_of(py::handle object, const std::string& name) {
  py::tuple pair = call_method(object, protocol().device, nullptr);
  const auto type = py::cast<std::int32_t>(py::int_(pair[0]));
  if (type == dlpack::kCpu || type == dlpack::kCudaHost) return {};
  if (type == dlpack::kCuda) {
    throw py::value_error(name + ": got an array on cuda:" + std::string(py::str(pair[1])) +
                          ", expected one on the CPU (this version has no CUDA kernels)");
  }
  throw py::value_error(name + ": got an array on a device that flatstep does not know");
}

std::string dtype_text(const dlpack::DataType& type) {
  const char* kind = type.code == dlpack::kInt     ? "int"
                     : type.code == dlpack::kUInt  ? "uint"
                     : type.code == dlpack::kFloat ? "float"
                     : type.code == dlpack::kBool  ? "bool"
                                                   : "type";
  return kind + std::to_string(type.bits);
}

DType dtype_of(const dlpack::DataType& type, const std::string& name) {
  if (type.lanes == 1) {
    if (type.code == dlpack::kFloat && type.bits == 32) return DType::f32;
    if (type.code == dlpack::kFloat && type.bits == 64) return DType::f64;
    if (type.code == dlpack::kFloat && type.bits == 16) return DType::f16;
    if (type.code == dlpack::kBfloat && type.bits == 16) return DType::bf16;
    if (type.code == dlpack::kInt && type.bits == 32) return DType::i32;
    if (type.code == dlpack::kInt && type.bits == 64) return DType::i64;
    if (type.code == dlpack::kUInt && type.bits == 8) return DType::u8;
    if (type.code == dlpack::kUInt && type.bits == 16) return DType::u16;
  }
  wrong_type(name, dtype_text(type), "float32, float64, bfloat16, float16, int32 or int64");
}

}  // namespace

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

ArrayArg::ArrayArg(py::handle object, std::string name, Access access) : name_(std::move(name)) {
  if (PyObject_HasAttr(object.ptr(), protocol().dlpack) == 0 ||
      PyObject_HasAttr(object.ptr(), protocol().device) == 0) {
    wrong_type(name_, type_name(object), "an array (NumPy, PyTorch, JAX or CuPy)");
  }
  device_ = device_of(object, name_);
  py::capsule capsule = export_capsule(object, name_);
  const dlpack::Tensor* tensor = nullptr;
  bool read_only = false;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    versioned_ = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    if (versioned_->version.major != dlpack::kMajorVersion) {
      release();
      throw py::value_error(name_ + ": the exporter speaks another version of DLPack");
    }
    tensor = &versioned_->tensor;
    read_only = (versioned_->flags & dlpack::kReadOnly) != 0;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    legacy_ = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    tensor = &legacy_->tensor;
  } else {
    wrong_type(name_, "a capsule that is not DLPack", "an array");
  }
  try {
    dtype_ = dtype_of(tensor->dtype, name_);
    if (access == Access::write && read_only) {
      throw py::value_error(name_ + ": got a read-only array, expected one that can be written");
    }
    data_ = static_cast<char*>(tensor->data) + tensor->byte_offset;
    shape_.assign(tensor->shape, tensor->shape + tensor->ndim);
    for (const std::int64_t extent : shape_) size_ *= extent;
    if (size_ > 0 && !aligned(data_, dtype_)) {
      throw py::value_error(name_ + ": got a misaligned array, expected alignment to its elements");
    }
    strides_.resize(shape_.size());
    std::int64_t stride = 1;
    for (std::size_t i = shape_.size(); i-- > 0; stride *= shape_[i]) {
      strides_[i] = tensor->strides != nullptr ? tensor->strides[i] : stride;
    }
  } catch (...) {
    release();
    throw;
  }
}

ArrayArg::ArrayArg(ArrayArg&& other) noexcept
    : name_(std::move(other.name_)),
      legacy_(std::exchange(other.legacy_, nullptr)),
      versioned_(std::exchange(other.versioned_, nullptr)),
      data_(other.data_),
      dtype_(other.dtype_),
      device_(other.device_),
      shape_(std::move(other.shape_)),
      strides_(std::move(other.strides_)),
      size_(other.size_) {}

ArrayArg::~ArrayArg() { release(); }

void ArrayArg::release() {
  if (legacy_ != nullptr && legacy_->deleter != nullptr) legacy_->deleter(legacy_);
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
  legacy_ = nullptr;
  versioned_ = nullptr;
}

bool ArrayArg::contiguous() const {
  std::int64_t stride = 1;
  for (std::size_t i = shape_.size(); i-- > 0; stride *= shape_[i]) {
    if (shape_[i] > 1 && strides_[i] != stride && size_ > 0) return false;
  }
  return true;
}

void ArrayArg::require_dtype(DType wanted) const {
  if (dtype_ != wanted) wrong_type(name_, name_of(dtype_), name_of(wanted));
}

void ArrayArg::require_contiguous() const {
  if (!contiguous()) {
    throw py::value_error(name_ +
                          ": got an array that is not contiguous, expected a contiguous one");
  }
}

void ArrayArg::require_shape(const std::vector<std::int64_t>& wanted) const {
  if (shape_ != wanted) {
    throw py::value_error(name_ + ": got shape " + shape_text(shape_) + ", expected " +
                          shape_text(wanted));
  }
}

ConstMatrix ArrayArg::matrix() const {
  if (shape_.empty()) {
    throw py::value_error(name_ + ": got a scalar, expected an array [..., V]");
  }
  const std::size_t last = shape_.size() - 1;
  const std::int64_t cols = shape_[last];
  std::int64_t rows = 1;
  for (std::size_t i = 0; i < last; ++i) rows *= shape_[i];
  if (cols > 1 && strides_[last] != 1 && size_ > 0) {
    throw py::value_error(name_ + ": the last dimension is not contiguous, expected stride 1");
  }
  // Dimensions of extent 1 carry no stride; the others must nest with one stride between rows.
  std::int64_t row_stride = cols, expected = 0;
  bool found = false;
  for (std::size_t i = last; i-- > 0;) {
    if (shape_[i] == 1) continue;
    if (found && strides_[i] != expected && size_ > 0) {
      throw py::value_error(name_ +
                            ": the rows are not evenly spaced, expected one stride for "
                            "all leading dimensions");
    }
    if (!found) row_stride = strides_[i];
    found = true;
    expected = strides_[i] * shape_[i];
  }
  if (size_ > 0 && row_stride < cols) {
    throw py::value_error(name_ + ": the rows overlap, expected a row stride of at least " +
                          std::to_string(cols));
  }
  return {data_, dtype_, rows, cols, size_ > 0 ? row_stride : cols};
}

IndexArg::IndexArg(py::handle object, const std::string& name)
    : array_(object, name, Access::read) {
  if (array_.dtype() != DType::i32 && array_.dtype() != DType::i64) {
    wrong_type(name, name_of(array_.dtype()), "int32 or int64");
  }
  if (array_.contiguous()) return;
  copy_.reserve(static_cast<std::size_t>(array_.size()));
  array_.for_each_offset([&](std::int64_t offset) {
    copy_.push_back(array_.dtype() == DType::i32 ? array_.as<std::int32_t>()[offset]
                                                 : array_.as<std::int64_t>()[offset]);
  });
}

IndexArray IndexArg::array() const {
  if (!copy_.empty()) return {copy_.data(), DType::i64, array_.size()};
  return {array_.data(), array_.dtype(), array_.size()};
}

}  // namespace flatstep::python
