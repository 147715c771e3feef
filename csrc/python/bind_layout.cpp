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
      .def_property_readonly(
          "betas",
          [](const LayoutEntry& entry) -> std::optional<std::pair<double, double>> {
            if (!entry.betas) return std::nullopt;
            return std::make_pair(entry.betas->beta1, entry.betas->beta2);
          })
      .def("__repr__", [](const LayoutEntry& entry) {
        return py::str("LayoutEntry(name={!r}, shape={}, offset={})")
            .format(entry.name, py::tuple(py::cast(entry.shape)), entry.offset);
      });
  py::class_<Layout>(module, "Layout")
      .def(py::init<>())
      .def(
          "add",
          [](Layout& self, const std::string& name, const std::vector<std::int64_t>& shape,
             double lr_scale, std::optional<double> weight_decay,
             std::optional<std::pair<double, double>> betas) {
            std::optional<Betas> own;
            if (betas) own = Betas{betas->first, betas->second};
            self.add(name, shape, lr_scale, weight_decay, own);
          },
          py::arg("name"), py::arg("shape"), py::arg("lr_scale") = 1.0,
          py::arg("weight_decay") = py::none(), py::arg("betas") = py::none())
      .def("leave_vectors_undecayed", &Layout::leave_vectors_undecayed)
      .def("at", &Layout::at, py::arg("name"), py::return_value_policy::copy)
      .def("contains", &Layout::contains, py::arg("name"))
      .def_property_readonly("entries", &Layout::entries, py::return_value_policy::copy)
      .def_property_readonly("size", &Layout::size);
}

}  // namespace flatstep::python
