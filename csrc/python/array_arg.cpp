#include "python/array_arg.h"

#include <algorithm>
#include <utility>

#include "core/checks.h"
#include "flatstep/memory.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

std::string dtype_text(const dlpack::DataType& type) {
  const char* kind = type.code == dlpack::kInt     ? "int"
                     : type.code == dlpack::kUInt  ? "uint"
                     : type.code == dlpack::kFloat ? "float"
                     : type.code == dlpack::kBool  ? "bool"
                                                   : "type";
  return kind + std::to_string(type.bits);
}

DType dtype_of(const dlpack::DataType& type, const ArgumentName& name) {
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

ArrayArg::ArrayArg(py::handle object, ArgumentName name, Access access, const Place* place)
    : name_(std::move(name)), exported_(export_tensor(object, name_, place)) {
  const dlpack::ManagedTensorVersioned* versioned = exported_.versioned;
  if (versioned != nullptr && versioned->version.major != dlpack::kMajorVersion) {
    release();
    throw py::value_error(this->name() + ": the exporter speaks another version of DLPack");
  }
  const dlpack::Tensor* tensor =
      versioned != nullptr ? &versioned->tensor : &exported_.legacy->tensor;
  const bool read_only = versioned != nullptr && (versioned->flags & dlpack::kReadOnly) != 0;
  try {
    dtype_ = dtype_of(tensor->dtype, name_);
    if (access == Access::write && read_only) {
      throw py::value_error(this->name() +
                            ": got a read-only array, expected one that can be written");
    }
    data_ = static_cast<char*>(tensor->data) + tensor->byte_offset;
    shape_.assign(tensor->shape, tensor->shape + tensor->ndim);
    for (const std::int64_t extent : shape_) size_ *= extent;
    if (size_ > 0 && !aligned(data_, dtype_)) {
      throw py::value_error(this->name() +
                            ": got a misaligned array, expected alignment to its elements");
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
      exported_(other.exported_),
      data_(other.data_),
      dtype_(other.dtype_),
      shape_(std::move(other.shape_)),
      strides_(std::move(other.strides_)),
      size_(other.size_) {
  other.exported_.legacy = nullptr;
  other.exported_.versioned = nullptr;
}

ArrayArg::~ArrayArg() { release(); }

void ArrayArg::release() {
  auto* legacy = std::exchange(exported_.legacy, nullptr);
  auto* versioned = std::exchange(exported_.versioned, nullptr);
  if (exported_.wait_before_release && (legacy != nullptr || versioned != nullptr)) {
    const Unlocked unlocked;
    try {
      synchronize(device());
    } catch (...) {  // whoever waits next will hear of it
    }
  }
  if (legacy != nullptr && legacy->deleter != nullptr) legacy->deleter(legacy);
  if (versioned != nullptr && versioned->deleter != nullptr) versioned->deleter(versioned);
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
    throw py::value_error(name() +
                          ": got an array that is not contiguous, expected a contiguous one");
  }
}

void ArrayArg::require_shape(const std::vector<std::int64_t>& wanted) const {
  if (shape_ != wanted) {
    throw py::value_error(name() + ": got shape " + shape_text(shape_) + ", expected " +
                          shape_text(wanted));
  }
}

ConstMatrix ArrayArg::matrix() const {
  if (shape_.empty()) {
    throw py::value_error(name() + ": got a scalar, expected an array [..., V]");
  }
  const std::size_t last = shape_.size() - 1;
  const std::int64_t cols = shape_[last];
  std::int64_t rows = 1;
  for (std::size_t i = 0; i < last; ++i) rows *= shape_[i];
  if (cols > 1 && strides_[last] != 1 && size_ > 0) {
    throw py::value_error(name() + ": the last dimension is not contiguous, expected stride 1");
  }
  // Dimensions of extent 1 carry no stride; the others must nest with one stride between rows.
  std::int64_t row_stride = cols, expected = 0;
  bool found = false;
  for (std::size_t i = last; i-- > 0;) {
    if (shape_[i] == 1) continue;
    if (found && strides_[i] != expected && size_ > 0) {
      throw py::value_error(name() +
                            ": the rows are not evenly spaced, expected one stride for "
                            "all leading dimensions");
    }
    if (!found) row_stride = strides_[i];
    found = true;
    expected = strides_[i] * shape_[i];
  }
  if (size_ > 0 && row_stride < cols) {
    throw py::value_error(name() + ": the rows overlap, expected a row stride of at least " +
                          std::to_string(cols));
  }
  return {data_, dtype_, rows, cols, size_ > 0 ? row_stride : cols};
}

IndexArg::IndexArg(py::handle object, const std::string& name, const Place& place)
    : array_(object, name, Access::read, &place) {
  if (array_.dtype() != DType::i32 && array_.dtype() != DType::i64) {
    wrong_type(name, name_of(array_.dtype()), "int32 or int64");
  }
  if (array_.device().type != DeviceType::cpu) array_.require_contiguous();
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
