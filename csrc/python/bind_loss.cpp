#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "flatstep/loss.h"
#include "python/array_arg.h"
#include "python/bindings.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// One element a row of the logits, of the type of the loss.
std::optional<ArrayArg> row_array(py::handle object, const char* name, Access access,
                                  const std::vector<std::int64_t>& shape, DType dtype) {
  if (object.is_none()) return std::nullopt;
  ArrayArg array(object, name, access);
  array.require_dtype(dtype);
  array.require_contiguous();
  array.require_shape(shape);
  return array;
}

// Fills the arrays that are not None; returns (loss, n_valid). See flatstep/loss.h.
py::tuple cross_entropy_arrays(py::handle logits_object, py::handle targets_object,
                               Reduction reduction, double label_smoothing,
                               std::int64_t ignore_index, std::optional<double> divisor,
                               OnEmpty on_empty, double grad_output, py::handle grad_output_rows,
                               py::handle loss_object, py::handle lse_object,
                               py::handle grad_object) {
  const bool in_place = grad_object.is(logits_object);
  const ArrayArg logits(logits_object, in_place ? "grad" : "logits",
                        in_place ? Access::write : Access::read);
  const IndexArg targets(targets_object, "targets");
  const ConstMatrix matrix = logits.matrix();
  std::vector<std::int64_t> rows(logits.shape().begin(), logits.shape().end() - 1);
  if (targets.shape() != rows) {
    throw py::value_error("targets: got shape " + shape_text(targets.shape()) + ", expected " +
                          shape_text(rows) + ", the shape of logits without its last dimension");
  }
  const DType row_dtype = matrix.dtype == DType::f64 ? DType::f64 : DType::f32;
  const auto loss = row_array(loss_object, "loss", Access::write, rows, row_dtype);
  const auto lse = row_array(lse_object, "lse", Access::write, rows, row_dtype);
  const auto upstream = row_array(grad_output_rows, "grad_output", Access::read, rows, row_dtype);

  CrossEntropyOutputs outputs;
  if (loss) outputs.loss = loss->data();
  if (lse) outputs.lse = lse->data();
  if (upstream) outputs.grad_output = upstream->data();
  std::optional<ArrayArg> grad;
  if (in_place) {
    outputs.grad = logits.data();
    outputs.grad_row_stride = matrix.row_stride;
  } else if (!grad_object.is_none()) {
    grad.emplace(grad_object, "grad", Access::write);
    grad->require_dtype(matrix.dtype);
    grad->require_shape(logits.shape());
    const ConstMatrix layout = grad->matrix();
    outputs.grad = grad->data();
    outputs.grad_row_stride = layout.row_stride;
  }

  CrossEntropyOptions options;
  options.reduction = reduction;
  options.label_smoothing = label_smoothing;
  options.ignore_index = ignore_index;
  options.divisor = divisor;
  options.on_empty = on_empty;
  options.grad_output = grad_output;
  CrossEntropyResult result;
  {
    const Unlocked unlocked;
    const std::size_t bytes = cross_entropy_workspace_bytes(matrix.rows);
    std::vector<std::int64_t> workspace(bytes / 8);
    result = cross_entropy(matrix, targets.array(), options, outputs, workspace.data(), bytes,
                           logits.device());
  }
  return py::make_tuple(result.loss, result.n_valid);
}

}  // namespace

void bind_loss(py::module_& module) {
  py::enum_<Reduction>(module, "Reduction")
      .value("mean", Reduction::mean)
      .value("sum", Reduction::sum)
      .value("none", Reduction::none);
  py::enum_<OnEmpty>(module, "OnEmpty").value("zero", OnEmpty::zero).value("nan", OnEmpty::nan);
  module.def("cross_entropy", cross_entropy_arrays, py::arg("logits"), py::arg("targets"),
             py::arg("reduction"), py::arg("label_smoothing"), py::arg("ignore_index"),
             py::arg("divisor"), py::arg("on_empty"), py::arg("grad_output"),
             py::arg("grad_output_rows"), py::arg("loss"), py::arg("lse"), py::arg("grad"));
}

}  // namespace flatstep::python
