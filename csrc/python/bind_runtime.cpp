#include <pybind11/stl.h>

#include "core/checks.h"
#include "flatstep/dropout.h"
#include "flatstep/runtime.h"
#include "python/array_arg.h"
#include "python/bindings.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

py::dict info() {
  const BuildInfo build = build_info();
  py::dict cuda;
  cuda["built"] = build.cuda_built;
  cuda["archs"] = build.cuda_archs;
  cuda["devices"] = build.cuda_devices;
  cuda["why_not"] = build.cuda_why_not;
  py::dict result;
  result["version"] = build.version;
  result["isa"] = build.isa;
  result["isa_available"] = build.isa_available;
  result["threads"] = build.threads;
  result["openmp"] = build.openmp;
  result["blas"] = build.blas;
  result["cuda"] = cuda;
  return result;
}

// (shape, dtype name)
py::tuple describe(py::handle object, const std::string& argument) {
  const ArrayArg array(object, argument, Access::read);
  return py::make_tuple(py::tuple(py::cast(array.shape())), name_of(array.dtype()));
}

void dropout_array(py::handle x_object, py::handle out_object, double p, std::uint64_t seed,
                   std::int64_t step, std::uint32_t site) {
  const ArrayArg x(x_object, "x", Access::read);
  const Place place = x.place();
  const ArrayArg out(out_object, "out", Access::write, &place);
  x.require_dtype(DType::f32);
  x.require_contiguous();
  out.require_dtype(DType::f32);
  out.require_contiguous();
  out.require_shape(x.shape());
  const Unlocked unlocked;
  dropout(x.as<const float>(), out.as<float>(), x.size(), p, {seed, step, site}, 0, place.device);
}

// Fills an array of uint8 on any device.
void dropout_mask_array(py::handle out_object, double p, std::uint64_t seed, std::int64_t step,
                        std::uint32_t site) {
  const ArrayArg out(out_object, "out", Access::write);
  out.require_dtype(DType::u8);
  out.require_contiguous();
  const Unlocked unlocked;
  dropout_mask(out.as<std::uint8_t>(), out.size(), p, {seed, step, site}, 0, out.device());
}

py::bytearray dropout_bits(std::int64_t size, double p, std::uint64_t seed, std::int64_t step,
                           std::uint32_t site) {
  if (size < 0)
    throw py::value_error("shape: got a negative extent, expected extents of 0 or more");
  // A bytearray is Python's own writable buffer; NumPy wraps it without a copy.
  py::bytearray mask = py::reinterpret_steal<py::bytearray>(
      PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  auto* bits = reinterpret_cast<std::uint8_t*>(PyByteArray_AsString(mask.ptr()));
  {
    const Unlocked unlocked;
    dropout_mask(bits, size, p, {seed, step, site});
  }
  return mask;
}

// Where Python looks for packages, cuBLAS's among them, which is needed much later if at all.
std::vector<std::string> search_path() {
  std::vector<std::string> folders;
  for (const py::handle folder : py::module_::import("sys").attr("path")) {
    if (py::isinstance<py::str>(folder)) folders.push_back(py::cast<std::string>(folder));
  }
  return folders;
}

}  // namespace

void bind_runtime(py::module_& module) {
  set_package_folders(search_path());
  module.attr("__version__") = version();
  module.def("info", info);
  module.def("set_num_threads", set_num_threads, py::arg("n"));
  module.def("get_num_threads", get_num_threads);
  module.def("describe", describe, py::arg("array"), py::arg("argument"));
  module.def("dropout", dropout_array, py::arg("x"), py::arg("out"), py::arg("p"), py::arg("seed"),
             py::arg("step"), py::arg("site"));
  module.def("dropout_mask", dropout_bits, py::arg("size"), py::arg("p"), py::arg("seed"),
             py::arg("step"), py::arg("site"));
  module.def("dropout_mask_array", dropout_mask_array, py::arg("out"), py::arg("p"),
             py::arg("seed"), py::arg("step"), py::arg("site"));
}

}  // namespace flatstep::python
