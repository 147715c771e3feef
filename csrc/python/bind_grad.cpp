#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "flatstep/convert.h"
#include "flatstep/grad.h"
#include "flatstep/optim.h"
#include "python/array_list.h"
#include "python/bindings.h"
#include "python/status.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// (norm, nonfinite tensor or -1, its index); clips when max_norm is given, else fills the partials.
py::tuple grad_norm_arrays(const py::list& objects, std::optional<double> max_norm,
                           GradPartials* partials) {
  const std::vector<ArrayArg> grads =
      take_arrays(objects, "grads", max_norm ? Access::write : Access::read);
  const DType dtype = common_dtype(grads);
  const Device device = place_of(grads).device;
  GradNorm norm;
  waiting(device, [&] {
    norm = max_norm ? clip_grad_norm(pointers_of(grads), sizes_of(grads), dtype, *max_norm, device)
                    : grad_norm(const_pointers_of(grads), sizes_of(grads), dtype, device, partials);
  });
  return py::make_tuple(norm.norm, norm.nonfinite_segment, norm.nonfinite_index);
}

// `sizes` cuts one flat array into tensors; without them the arrays are the tensors.
GradPartials accumulate_arrays(const py::list& total_objects, const py::list& src_objects,
                               const std::optional<std::vector<std::int64_t>>& sizes, double scale,
                               bool overwrite) {
  const std::vector<ArrayArg> totals = take_arrays(total_objects, "totals", Access::write);
  const Place place = place_of(totals);
  const std::vector<ArrayArg> src = take_arrays(src_objects, "src", Access::read, &place);
  require_like(src, totals, "src", "totals");
  const AccumulateOptions options{common_dtype(totals), common_dtype(src), scale, overwrite};
  std::vector<void*> to = pointers_of(totals);
  std::vector<const void*> from = const_pointers_of(src);
  if (sizes) {
    const auto cut = [&](auto& list, const ArrayArg& array, auto pointer) {
      list.clear();
      std::int64_t offset = 0;
      for (const std::int64_t size : *sizes) {
        list.push_back(static_cast<decltype(pointer)>(array.data()) +
                       offset * size_of(array.dtype()));
        offset += size;
      }
    };
    cut(to, totals.front(), static_cast<char*>(nullptr));
    cut(from, src.front(), static_cast<char*>(nullptr));
  }
  const Unlocked unlocked;
  return accumulate(to, from, sizes ? *sizes : sizes_of(totals), options, place.device);
}

// f32 to bf16 or back, rounded to nearest; both flat or of one shape.
void convert_array(py::handle from_object, py::handle to_object) {
  const ArrayArg from(from_object, "params", Access::read);
  const Place place = from.place();
  const ArrayArg to(to_object, "copy", Access::write, &place);
  from.require_contiguous();
  to.require_contiguous();
  to.require_dtype(from.dtype() == DType::f32 ? DType::bf16 : DType::f32);
  const Unlocked unlocked;
  convert(from.data(), from.dtype(), to.data(), to.dtype(), to.size(), place.device);
}

double norm_of(const GradPartials& partials) {
  double norm = 0;
  waiting(partials.device, [&] { norm = partials.norm(); });
  return norm;
}

}  // namespace

void bind_grad(py::module_& module) {
  py::class_<GradPartials>(
      module, "GradPartials",
      "Sums of squares of a gradient's tensors, float64, one for each 4096 elements. Made by\n"
      "flatstep.accumulate, or by flatstep.GPT as grad_partials; taken by an optimizer's step.\n\n"
      "sizes: elements of each tensor, a list of int. norm: the L2 norm over all, a float. Of\n"
      "gradients on a CUDA device they are kept there, and norm waits for its stream.")
      .def(py::init<>())
      .def_readonly("sizes", &GradPartials::sizes)
      .def_property_readonly("norm", norm_of);
  module.def("grad_norm", grad_norm_arrays, py::arg("grads"), py::arg("max_norm") = py::none(),
             py::arg("partials") = py::none());
  module.def("accumulate", accumulate_arrays, py::arg("totals"), py::arg("src"), py::arg("sizes"),
             py::arg("scale"), py::arg("overwrite"));
  module.def("state_block", [] { return kStateBlock; });
  module.def("norm_chunk", [] { return GradPartials::kChunk; });
  module.def("convert", convert_array, py::arg("from_array"), py::arg("to_array"));
}

}  // namespace flatstep::python
