// One function for each area; each adds its part to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace flatstep::python {

void bind_runtime(pybind11::module_& module);
void bind_memory(pybind11::module_& module);
void bind_schedule(pybind11::module_& module);
void bind_layout(pybind11::module_& module);
void bind_loss(pybind11::module_& module);
void bind_grad(pybind11::module_& module);
void bind_optim(pybind11::module_& module);
void bind_gpt(pybind11::module_& module);

}  // namespace flatstep::python
