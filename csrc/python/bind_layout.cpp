#include <pybind11/stl.h>

#include "flatstep/layout.h"
#include "python/bindings.h"

namespace flatstep::python {

namespace py = pybind11;

void bind_layout(py::module_& module) {
  py::class_<LayoutEntry>(module, "LayoutEntry")
      .def_readonly("name", &LayoutEntry::name)
      .def_property_readonly(
          "shape", [](const LayoutEntry& entry) { return py::tuple(py::cast(entry.shape)); })
      .def_readonly("offset", &LayoutEntry::offset)
      .def_readonly("size", &LayoutEntry::size)
      .def_readonly("lr_scale", &LayoutEntry::lr_scale)
      .def_readonly("weight_decay", &LayoutEntry::weight_decay)
      .def("__repr__", [](const LayoutEntry& entry) {
        return py::str("LayoutEntry(name={!r}, shape={}, offset={})")
            .format(entry.name, py::tuple(py::cast(entry.shape)), entry.offset);
      });
  py::class_<Layout>(module, "Layout")
      .def(py::init<>())
      .def("add", &Layout::add, py::arg("name"), py::arg("shape"), py::arg("lr_scale") = 1.0,
           py::arg("weight_decay") = py::none())
      .def("at", &Layout::at, py::arg("name"), py::return_value_policy::copy)
      .def("contains", &Layout::contains, py::arg("name"))
      .def_property_readonly("entries", &Layout::entries, py::return_value_policy::copy)
      .def_property_readonly("size", &Layout::size);
}

}  // namespace flatstep::python
