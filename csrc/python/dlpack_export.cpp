// Lists of thousands of small tensors come in at every step, so what does not change from call to
// call is made once, and PyTorch's tensors go past its __dlpack__, which takes microseconds.
#include "python/dlpack_export.h"

#include "flatstep/runtime.h"
#include "python/device_array.h"
#include "python/exchange_api.h"

namespace flatstep::python {
namespace {

// Interned names and the arguments of __dlpack__, for the lifetime of the process.
struct Protocol {
  PyObject* device = PyUnicode_InternFromString("__dlpack_device__");
  PyObject* dlpack = PyUnicode_InternFromString("__dlpack__");
  PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* version = Py_BuildValue("(ii)", 1, 0);
  PyObject* stream_keyword = PyTuple_Pack(1, PyUnicode_InternFromString("stream"));
  PyObject* version_keyword = PyTuple_Pack(1, PyUnicode_InternFromString("max_version"));
  PyObject* both_keywords = PyTuple_Pack(2, PyUnicode_InternFromString("max_version"),
                                         PyUnicode_InternFromString("stream"));
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

Device known_device(const dlpack::Device& device, const ArgumentName& name) {
  switch (device.type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      return {};
    case dlpack::kCuda:
    case dlpack::kCudaManaged:
      return {DeviceType::cuda, device.id};
    default:
      throw py::value_error(name.text() + ": got an array on a device that flatstep does not know");
  }
}

// Refuses an array that is elsewhere than the call, or on a device that is not to be had.
void require_place(const Device& device, const ArgumentName& name, const Place* place) {
  const auto refuse = [&](const Device& expected, const std::string& why) {
    throw py::value_error(name.text() + ": got an array on " + device_text(device) +
                          ", expected one on " + device_text(expected) + why);
  };
  if (place != nullptr &&
      (device.type != place->device.type || device.index != place->device.index)) {
    refuse(place->device, place->like.empty() ? "" : ", like " + place->like);
  }
  if (device.type == DeviceType::cpu) return;
  static const std::string why_not = build_info().cuda_why_not;
  if (!why_not.empty()) refuse({}, " (cuda is not available, " + why_not + ")");
}

// From __dlpack_device__; the stream is left open.
Device device_of(py::handle object, const ArgumentName& name) {
  const py::object result = call_method(object, protocol().device);
  if (!result) {
    py::error_already_set error;
    require_array(object, name);
    throw error;
  }
  const py::tuple pair = result;
  const auto type = py::cast<std::int32_t>(py::int_(pair[0]));
  if (type == dlpack::kCpu) return {};
  require_array(object, name);
  return known_device({type, py::cast<std::int32_t>(py::int_(pair[1]))}, name);
}

// The DLPack capsule. Exporters older than version 1 do not know max_version; a stream is only
// given on CUDA, since CPU exporters may refuse one.
py::capsule export_capsule(py::handle object, const ArgumentName& name, const Device& device) {
  const Protocol& words = protocol();
  const bool cuda = device.type == DeviceType::cuda;
  const py::object stream = cuda ? py::object(py::int_(legacy_as_one(device.stream))) : py::none();
  PyObject* arguments[] = {object.ptr(), words.version, stream.ptr()};
  auto capsule = py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(
      words.dlpack, arguments, 1, cuda ? words.both_keywords : words.version_keyword));
  if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Clear();
    arguments[1] = stream.ptr();
    capsule = py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(
        words.dlpack, arguments, 1, cuda ? words.stream_keyword : nullptr));
  }
  if (!capsule) {
    const py::error_already_set error;
    require_array(object, name);
    // What the exporter says (a tensor that requires grad, a byte-swapped array), with the name.
    throw py::value_error(name.text() + ": " + std::string(py::str(error.value())));
  }
  return capsule;
}

// On a device of the program and not complex: a conjugate is refused by __dlpack__ alone.
bool is_plain(const dlpack::Tensor& tensor) {
  return (tensor.device.type == dlpack::kCpu || tensor.device.type == dlpack::kCuda) &&
         tensor.dtype.code <= dlpack::kBfloat;
}

void drop(dlpack::ManagedTensorVersioned* tensor) {
  if (tensor->deleter != nullptr) tensor->deleter(tensor);
}

// The tensor without a call of Python's, or nothing: then __dlpack__ has the last word.
ExportedTensor export_directly(py::handle object, const ArgumentName& name, const Place* place) {
  const dlpack::ExchangeApi* api = exchange_api_of(object);
  if (api == nullptr) return {};
  // The table does not look at this, and __dlpack__ refuses it.
  const auto requires_grad =
      py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), protocol().requires_grad));
  dlpack::ManagedTensorVersioned* tensor = nullptr;
  if (requires_grad.ptr() != Py_False || api->export_tensor(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    return {};
  }
  if (!is_plain(tensor->tensor)) {
    drop(tensor);
    return {};
  }
  try {
    Device device = known_device(tensor->tensor.device, name);
    require_place(device, name, place);
    if (device.type == DeviceType::cuda) {
      device.stream = current_stream(object, device.index).value_or(0);
      if (place != nullptr && place->device.stream != device.stream) {  // one must wait for another
        drop(tensor);
        return {};
      }
    }
    return {nullptr, tensor, device};
  } catch (...) {
    drop(tensor);
    throw;
  }
}

}  // namespace

void wrong_type(const ArgumentName& name, const std::string& got, const std::string& expected) {
  throw py::type_error(name.text() + ": got " + got + ", expected " + expected);
}

std::string device_text(const Device& device) {
  return device.type == DeviceType::cpu ? "the CPU" : "cuda:" + std::to_string(device.index);
}

ExportedTensor export_tensor(py::handle object, const ArgumentName& name, const Place* place) {
  const ExportedTensor direct = export_directly(object, name, place);
  if (direct.versioned != nullptr) return direct;
  Device device = device_of(object, name);
  require_place(device, name, place);
  bool wait_before_release = false;
  if (device.type == DeviceType::cuda) {
    const auto current = current_stream(object, device.index);
    device.stream = place != nullptr ? place->device.stream : current.value_or(0);
    if (DeviceArray* own = DeviceArray::from(object)) {
      own->go_to(device.stream);
      return {nullptr, own->export_versioned(), device};
    }
    wait_before_release = current != device.stream;
  }
  const py::capsule capsule = export_capsule(object, name, device);
  const auto take = [&](const char* kind, const char* used) {
    void* tensor = PyCapsule_GetPointer(capsule.ptr(), kind);
    PyCapsule_SetName(capsule.ptr(), used);
    return tensor;
  };
  ExportedTensor result{nullptr, nullptr, device, wait_before_release};
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    result.versioned = static_cast<dlpack::ManagedTensorVersioned*>(
        take("dltensor_versioned", "used_dltensor_versioned"));
    return result;
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    result.legacy = static_cast<dlpack::ManagedTensor*>(take("dltensor", "used_dltensor"));
    return result;
  }
  wrong_type(name, "a capsule that is not DLPack", "an array");
}

}  // namespace flatstep::python
