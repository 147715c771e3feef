// The private module flatstep._core. The public names, defaults and docstrings are in
// python/flatstep; here arrays are unpacked, the GIL is released and the C++ core is called.
#include "python/bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled core of flatstep; use the names of the flatstep package instead.";
  flatstep::python::bind_runtime(module);
  flatstep::python::bind_memory(module);
  flatstep::python::bind_schedule(module);
  flatstep::python::bind_layout(module);
  flatstep::python::bind_loss(module);
  flatstep::python::bind_grad(module);
  flatstep::python::bind_optim(module);
  flatstep::python::bind_gpt(module);
}
