#include "python/plain_arg.h"

#include <string>

namespace flatstep::python {
namespace {

template <class... Others>
py::object checked(const char* function, py::handle value, const Others&... others) {
  return py::module_::import("flatstep._checks").attr(function)(value, others...);
}

}  // namespace

double number_of(py::handle value, const char* argument) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  return py::cast<double>(checked("number", value, argument));
}

std::optional<double> optional_number_of(py::handle value, const char* argument) {
  if (value.is_none()) return std::nullopt;
  return number_of(value, argument);
}

std::int64_t integer_of(py::handle value, const char* argument) {
  py::object integer = py::reinterpret_borrow<py::object>(value);
  if (!PyLong_CheckExact(value.ptr())) integer = checked("integer", value, argument);
  int overflow = 0;
  const std::int64_t number = PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow);
  if (overflow != 0) {
    throw py::value_error(std::string(argument) + ": got " + std::string(py::str(integer)) +
                          ", expected an integer of 64 bits");
  }
  return number;
}

int choice_of(py::handle value, const char* const* names, int count, const char* argument) {
  if (PyUnicode_Check(value.ptr())) {
    for (int i = 0; i < count; ++i) {
      if (PyUnicode_CompareWithASCIIString(value.ptr(), names[i]) == 0) return i;
    }
  }
  py::dict positions;
  for (int i = 0; i < count; ++i) positions[names[i]] = i;
  return py::cast<int>(checked("choice", value, positions, argument));
}

}  // namespace flatstep::python
