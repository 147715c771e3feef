// Plain arguments from Python. A float, an int or the name of a choice is read here; whatever else
// comes goes to the functions of flatstep/_checks.py, which convert it or raise the error that
// names the argument.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

namespace flatstep::python {

namespace py = pybind11;

double number_of(py::handle value, const char* argument);
std::optional<double> optional_number_of(py::handle value, const char* argument);
std::int64_t integer_of(py::handle value, const char* argument);

// The position of the value among `count` names.
int choice_of(py::handle value, const char* const* names, int count, const char* argument);

}  // namespace flatstep::python
