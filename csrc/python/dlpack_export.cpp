// Lists of thousands of small tensors come in at every step, so what does not change from call to
// call is made once, and PyTorch's tensors go past its __dlpack__, which takes microseconds.
#include "python/dlpack_export.h"

namespace flatstep::python {
namespace {

// Interned names and the arguments of __dlpack__, for the lifetime of the process.
struct Protocol {
  PyObject* device = PyUnicode_InternFromString("__dlpack_device__");
  PyObject* dlpack = PyUnicode_InternFromString("__dlpack__");
  PyObject* exchange = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* version = Py_BuildValue("(ii)", 1, 0);
  PyObject* version_keyword = PyTuple_Pack(1, PyUnicode_InternFromString("max_version"));
};

const Protocol& protocol() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Protocol> storage;
  return storage.call_once_and_store_result([] { return Protocol(); }).get_stored();
}

std::string type_name(py::handle object) {
  return py::cast<std::string>(py::type::of(object).attr("__name__"));
}

void require_array(py::handle object, const ArgumentName& name) {
  if (!py::hasattr(object, protocol().dlpack) || !py::hasattr(object, protocol().device)) {
    wrong_type(name, type_name(object), "an array (NumPy, PyTorch, JAX or CuPy)");
  }
}

py::object call_method(py::handle object, PyObject* method) {
  PyObject* self = object.ptr();
  return py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(method, &self, 1, nullptr));
}

void require_cpu(py::handle object, const ArgumentName& name) {
  const py::object result = call_method(object, protocol().device);
  if (!result) {
    py::error_already_set error;
    require_array(object, name);
    throw error;
  }
  const py::tuple pair = result;
  const auto type = py::cast<std::int32_t>(py::int_(pair[0]));
  if (type == dlpack::kCpu || type == dlpack::kCudaHost) return;
  require_array(object, name);
  if (type == dlpack::kCuda) {
    throw py::value_error(name.text() + ": got an array on cuda:" + std::string(py::str(pair[1])) +
                          ", expected one on the CPU (this version has no CUDA kernels)");
  }
  throw py::value_error(name.text() + ": got an array on a device that flatstep does not know");
}

// The DLPack capsule; exporters older than version 1 do not know max_version.
py::capsule export_capsule(py::handle object, const ArgumentName& name) {
  PyObject* arguments[] = {object.ptr(), protocol().version};
  auto capsule = py::reinterpret_steal<py::object>(
      PyObject_VectorcallMethod(protocol().dlpack, arguments, 1, protocol().version_keyword));
  if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Clear();
    capsule = call_method(object, protocol().dlpack);
  }
  if (!capsule) {
    const py::error_already_set error;
    require_array(object, name);
    // What the exporter says (a tensor that requires grad, a byte-swapped array), with the name.
    throw py::value_error(name.text() + ": " + std::string(py::str(error.value())));
  }
  return capsule;
}

// The table of the object's type, if that very type has one and exports as __dlpack__ would: for a
// subclass that might not hold.
const dlpack::ExchangeApi* exchange_api_of(py::handle object) {
  static PyTypeObject* known = nullptr;  // a reference of our own, so that no other type gets here
  static const dlpack::ExchangeApi* api = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == known) return api;
  Py_INCREF(type);
  Py_XDECREF(reinterpret_cast<PyObject*>(std::exchange(known, type)));
  api = nullptr;
  PyObject* capsule = type->tp_dict == nullptr
                          ? nullptr
                          : PyDict_GetItemWithError(type->tp_dict, protocol().exchange);
  if (capsule != nullptr && PyCapsule_IsValid(capsule, "dlpack_exchange_api")) {
    const auto* found = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    if (found->version.major == dlpack::kMajorVersion) api = found;
  }
  PyErr_Clear();
  return api;
}

// In memory of the CPU and not complex: a conjugate is refused by __dlpack__ alone.
bool is_plain(const dlpack::Tensor& tensor) {
  return tensor.device.type == dlpack::kCpu && tensor.dtype.code <= dlpack::kBfloat;
}

// The tensor without a call of Python's, or null: then __dlpack__ has the last word.
dlpack::ManagedTensorVersioned* export_directly(py::handle object) {
  const dlpack::ExchangeApi* api = exchange_api_of(object);
  if (api == nullptr) return nullptr;
  // The table does not look at this, and __dlpack__ refuses it.
  const auto requires_grad =
      py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), protocol().requires_grad));
  dlpack::ManagedTensorVersioned* tensor = nullptr;
  if (requires_grad.ptr() != Py_False || api->export_tensor(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    return nullptr;
  }
  if (is_plain(tensor->tensor)) return tensor;
  if (tensor->deleter != nullptr) tensor->deleter(tensor);
  return nullptr;
}

}  // namespace

void wrong_type(const ArgumentName& name, const std::string& got, const std::string& expected) {
  throw py::type_error(name.text() + ": got " + got + ", expected " + expected);
}

ExportedTensor export_tensor(py::handle object, const ArgumentName& name) {
  if (auto* tensor = export_directly(object)) return {nullptr, tensor};
  require_cpu(object, name);
  const py::capsule capsule = export_capsule(object, name);
  const auto take = [&](const char* kind, const char* used) {
    void* tensor = PyCapsule_GetPointer(capsule.ptr(), kind);
    PyCapsule_SetName(capsule.ptr(), used);
    return tensor;
  };
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    return {nullptr, static_cast<dlpack::ManagedTensorVersioned*>(
                         take("dltensor_versioned", "used_dltensor_versioned"))};
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    return {static_cast<dlpack::ManagedTensor*>(take("dltensor", "used_dltensor")), nullptr};
  }
  wrong_type(name, "a capsule that is not DLPack", "an array");
}

}  // namespace flatstep::python
