#include "python/device_array.h"

#include <utility>

#include "core/checks.h"
#include "flatstep/memory.h"
#include "python/exchange_api.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

std::int64_t elements(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) {
    require(extent >= 0, "shape", extent, "extents of 0 or more");
    if (__builtin_mul_overflow(count, extent, &count)) {
      throw py::value_error("shape: got more elements than there are addresses");
    }
  }
  return count;
}

dlpack::DataType data_type(DType dtype) {
  const std::uint8_t code = dtype == DType::bf16                        ? dlpack::kBfloat
                            : is_floating(dtype)                        ? dlpack::kFloat
                            : dtype == DType::u8 || dtype == DType::u16 ? dlpack::kUInt
                                                                        : dlpack::kInt;
  return {code, static_cast<std::uint8_t>(8 * size_of(dtype)), 1};
}

// The destructor of a capsule that nobody took the tensor from.
template <class Managed>
void drop(PyObject* capsule, const char* name) {
  if (!PyCapsule_IsValid(capsule, name)) return;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  managed->deleter(managed);
}

}  // namespace

struct DeviceArray::Memory {
  Device device;
  void* data;

  Memory(std::int64_t bytes, const Device& device)
      : device(device), data(allocate(static_cast<std::size_t>(bytes), device)) {}
  ~Memory() {
    try {
      release(data, device);
    } catch (...) {  // the device or its stream has gone before
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

template <class Managed>
struct DeviceArray::Export {
  Managed managed{};
  std::shared_ptr<Memory> memory;
  std::vector<std::int64_t> shape, strides;
};

DeviceArray::DeviceArray(std::vector<std::int64_t> shape, DType dtype, const Device& device)
    : shape_(std::move(shape)), dtype_(dtype) {
  std::int64_t bytes;
  if (__builtin_mul_overflow(elements(shape_), size_of(dtype), &bytes)) {
    throw py::value_error("shape: got more bytes than there are addresses");
  }
  memory_ = std::make_shared<Memory>(bytes, device);
}

DeviceArray::DeviceArray(const DeviceArray& other, std::vector<std::int64_t> shape)
    : memory_(other.memory_), shape_(std::move(shape)), dtype_(other.dtype_) {
  if (elements(shape_) != elements(other.shape_)) {
    throw py::value_error("shape: got one of " + std::to_string(elements(shape_)) +
                          " elements, expected " + std::to_string(elements(other.shape_)));
  }
}

DeviceArray* DeviceArray::from(py::handle object) {
  return py::isinstance<DeviceArray>(object) ? py::cast<DeviceArray*>(object) : nullptr;
}

const Device& DeviceArray::device() const { return memory_->device; }

std::int64_t DeviceArray::bytes() const { return elements(shape_) * size_of(dtype_); }

void DeviceArray::go_to(std::uintptr_t stream) {
  if (stream == device().stream) return;
  {
    const Unlocked unlocked;
    synchronize(device());
  }
  memory_->device.stream = stream;
}

void DeviceArray::make_visible(std::int64_t stream) const {
  if (device().type == DeviceType::cpu || stream == -1 ||
      legacy_as_zero(static_cast<std::uintptr_t>(stream)) == device().stream) {
    return;
  }
  const Unlocked unlocked;
  synchronize(device());
}

template <class Managed>
Managed* DeviceArray::export_as() const {
  auto* exported =
      new Export<Managed>{{}, memory_, shape_, std::vector<std::int64_t>(shape_.size())};
  std::int64_t stride = 1;
  for (std::size_t i = shape_.size(); i-- > 0; stride *= shape_[i]) exported->strides[i] = stride;
  dlpack::Tensor& tensor = exported->managed.tensor;
  tensor.data = memory_->data;
  tensor.device = {device().type == DeviceType::cuda ? dlpack::kCuda : dlpack::kCpu,
                   device().index};
  tensor.ndim = static_cast<std::int32_t>(shape_.size());
  tensor.dtype = data_type(dtype_);
  tensor.shape = exported->shape.data();
  tensor.strides = exported->strides.data();
  exported->managed.context = exported;
  exported->managed.deleter = [](Managed* managed) {
    delete static_cast<Export<Managed>*>(managed->context);
  };
  return &exported->managed;
}

dlpack::ManagedTensorVersioned* DeviceArray::export_versioned() const {
  auto* managed = export_as<dlpack::ManagedTensorVersioned>();
  managed->version = {dlpack::kMajorVersion, 0};
  return managed;
}

py::capsule DeviceArray::capsule(bool versioned) const {
  if (versioned) {
    return py::capsule(export_versioned(), "dltensor_versioned", [](PyObject* capsule) {
      drop<dlpack::ManagedTensorVersioned>(capsule, "dltensor_versioned");
    });
  }
  return py::capsule(export_as<dlpack::ManagedTensor>(), "dltensor",
                     [](PyObject* capsule) { drop<dlpack::ManagedTensor>(capsule, "dltensor"); });
}

}  // namespace flatstep::python
