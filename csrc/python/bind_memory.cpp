#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/checks.h"
#include "flatstep/memory.h"
#include "python/array_arg.h"
#include "python/bindings.h"
#include "python/device_array.h"
#include "python/status.h"

namespace flatstep::python {
namespace {

// The index of a CUDA device, or -1 for the CPU.
Device device_of(int index) { return index < 0 ? Device{} : Device{DeviceType::cuda, index}; }

DType dtype_named(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i32, DType::i64,
                            DType::u8, DType::u16}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw py::type_error("dtype: got " + name +
                       ", expected float32, float64, bfloat16, float16, int32, int64, uint8 or "
                       "uint16");
}

// Between the host and a device, or within the host: the bytes of as many elements of one size.
void copy_array(py::handle from_object, py::handle to_object) {
  const ArrayArg from(from_object, "array", Access::read), to(to_object, "out", Access::write);
  from.require_contiguous();
  to.require_contiguous();
  to.require_shape(from.shape());
  if (size_of(from.dtype()) != size_of(to.dtype())) to.require_dtype(from.dtype());
  const auto bytes = static_cast<std::size_t>(from.size() * size_of(from.dtype()));
  if (from.device().type == DeviceType::cpu) {
    const Unlocked unlocked;
    copy_to_device(to.data(), from.data(), bytes, to.device());
    return;
  }
  if (to.device().type != DeviceType::cpu) {
    throw py::value_error("array: got an array on " + device_text(from.device()) +
                          ", expected one on the CPU");
  }
  waiting(from.device(), [&] { copy_to_host(to.data(), from.data(), bytes, from.device()); });
}

void fill_zero_array(py::handle object) {
  const ArrayArg array(object, "array", Access::write);
  array.require_contiguous();
  const Unlocked unlocked;
  fill_zero(array.data(), static_cast<std::size_t>(array.size() * size_of(array.dtype())),
            array.device());
}

void synchronize_all(int index) {
  const Device device = device_of(index);
  waiting(device, [&] { synchronize_device(device); }, true);
}

}  // namespace

void bind_memory(py::module_& module) {
  py::class_<DeviceArray>(module, "DeviceArray")
      .def(py::init([](const std::vector<std::int64_t>& shape, const std::string& dtype,
                       int device_index, const DeviceArray* memory_of) {
             return memory_of != nullptr
                        ? DeviceArray(*memory_of, shape)
                        : DeviceArray(shape, dtype_named(dtype), device_of(device_index));
           }),
           py::arg("shape"), py::arg("dtype"), py::arg("device_index"),
           py::arg("memory_of") = py::none())
      .def_property_readonly(
          "shape", [](const DeviceArray& self) { return py::tuple(py::cast(self.shape())); })
      .def_property_readonly("dtype", [](const DeviceArray& self) { return name_of(self.dtype()); })
      .def_property_readonly("device_index",
                             [](const DeviceArray& self) {
                               const Device& device = self.device();
                               return device.type == DeviceType::cuda ? device.index : -1;
                             })
      .def_property_readonly("nbytes", &DeviceArray::bytes)
      .def("make_visible", &DeviceArray::make_visible, py::arg("stream"))
      .def("capsule", &DeviceArray::capsule, py::arg("versioned"));
  module.def("copy", copy_array, py::arg("from_array"), py::arg("to_array"));
  module.def("fill_zero", fill_zero_array, py::arg("array"));
  module.def("synchronize", synchronize_all, py::arg("device_index"));
  module.def("status_counts", [] {
    const StatusCounts counts = status_counts();
    return py::make_tuple(counts.made, counts.free, counts.watched);
  });
}

}  // namespace flatstep::python
