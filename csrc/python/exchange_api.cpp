#include "python/exchange_api.h"

#include <utility>

namespace flatstep::python {
namespace {

// The class `name` of a library that the program has imported, if the object is one of its arrays.
bool is_array_of(py::handle object, const char* library, const char* name) {
  PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), library);  // borrowed
  return module != nullptr && py::hasattr(module, name) &&
         py::isinstance(object, py::handle(module).attr(name));
}

std::uintptr_t number(const py::object& stream) { return py::cast<std::uintptr_t>(stream); }

}  // namespace

const dlpack::ExchangeApi* exchange_api_of(py::handle object) {
  static PyTypeObject* known = nullptr;  // a reference of our own, so that no other type gets here
  static const dlpack::ExchangeApi* api = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == known) return api;
  static PyObject* const name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  Py_INCREF(type);
  Py_XDECREF(reinterpret_cast<PyObject*>(std::exchange(known, type)));
  api = nullptr;
  PyObject* capsule =
      type->tp_dict == nullptr ? nullptr : PyDict_GetItemWithError(type->tp_dict, name);
  if (capsule != nullptr && PyCapsule_IsValid(capsule, "dlpack_exchange_api")) {
    const auto* found = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    if (found->version.major == dlpack::kMajorVersion) api = found;
  }
  PyErr_Clear();
  return api;
}

std::optional<std::uintptr_t> current_stream(py::handle object, int device_index) {
  const dlpack::ExchangeApi* api = exchange_api_of(object);
  if (api != nullptr && api->current_stream != nullptr) {
    void* stream = nullptr;
    if (api->current_stream(dlpack::kCuda, device_index, &stream) != 0) {
      throw py::error_already_set();
    }
    return legacy_as_zero(reinterpret_cast<std::uintptr_t>(stream));
  }
  if (is_array_of(object, "torch", "Tensor")) {
    const py::object cuda = py::module_::import("torch").attr("cuda");
    return legacy_as_zero(number(cuda.attr("current_stream")(device_index).attr("cuda_stream")));
  }
  if (is_array_of(object, "cupy", "ndarray")) {
    const py::object cuda = py::module_::import("cupy").attr("cuda");
    return legacy_as_zero(number(cuda.attr("get_current_stream")(device_index).attr("ptr")));
  }
  return std::nullopt;
}

}  // namespace flatstep::python
