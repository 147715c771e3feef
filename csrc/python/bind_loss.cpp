#include <pybind11/stl.h>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include <new>
#include <optional>
#include <vector>

#include "flatstep/loss.h"
#include "python/array_arg.h"
#include "python/bindings.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// A contiguous array of this shape and type, or nothing for None.
std::optional<ArrayArg> row_array(py::handle object, const char* name, Access access,
                                  const std::vector<std::int64_t>& shape, DType dtype) {
  if (object.is_none()) return std::nullopt;
  ArrayArg array(object, name, access);
  array.require_dtype(dtype);
  array.require_contiguous();
  array.require_shape(shape);
  return array;
}

// The options of both functions; holds their arrays.
class OptionsArg {
 public:
  OptionsArg(Reduction reduction, double label_smoothing, std::int64_t ignore_index,
             py::handle class_weight, py::handle token_weight, double z_loss,
             std::optional<double> softcap, std::optional<double> divisor, OnEmpty on_empty,
             double grad_output, py::handle grad_output_rows)
      : class_weight_(class_weight), token_weight_(token_weight), upstream_(grad_output_rows) {
    options_.reduction = reduction;
    options_.label_smoothing = label_smoothing;
    options_.ignore_index = ignore_index;
    options_.z_loss = z_loss;
    options_.softcap = softcap;
    options_.divisor = divisor;
    options_.on_empty = on_empty;
    options_.grad_output = grad_output;
  }

  // Takes the arrays: for rows of this shape, so many classes, and weights of this type.
  void take_arrays(const std::vector<std::int64_t>& rows, std::int64_t classes, DType dtype) {
    const auto take = [&](py::handle object, const char* name,
                          const std::vector<std::int64_t>& shape) -> const void* {
      auto array = row_array(object, name, Access::read, shape, dtype);
      if (!array) return nullptr;
      arrays_.push_back(std::move(*array));
      return arrays_.back().data();
    };
    options_.class_weight = take(class_weight_, "class_weight", {classes});
    options_.token_weight = take(token_weight_, "token_weight", rows);
    options_.grad_output_rows = take(upstream_, "grad_output", rows);
  }

  const CrossEntropyOptions& options() const { return options_; }

 private:
  py::handle class_weight_, token_weight_, upstream_;
  std::vector<ArrayArg> arrays_;
  CrossEntropyOptions options_;
};

std::vector<std::int64_t> leading_shape(const ArrayArg& array) {
  return {array.shape().begin(), array.shape().end() - 1};
}

void require_target_shape(const IndexArg& targets, const std::vector<std::int64_t>& rows,
                          const char* source) {
  if (targets.shape() != rows) {
    throw py::value_error("targets: got shape " + shape_text(targets.shape()) + ", expected " +
                          shape_text(rows) + ", the shape of " + source +
                          " without its last dimension");
  }
}

template <class T>
T* data_or_null(const std::optional<ArrayArg>& array) {
  return array ? array->as<T>() : nullptr;
}

// Memory whose contents do not matter. Much of it comes in huge pages where the system has them: a
// page fault for each 4 KB would cost as much as a pass over the memory.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes)
      : alignment_{bytes < kHugePage ? 64 : kHugePage}, memory_(::operator new(bytes, alignment_)) {
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(memory_, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Scratch() { ::operator delete(memory_, alignment_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return memory_; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;
  const std::align_val_t alignment_;
  void* memory_;
};

py::tuple as_tuple(const CrossEntropyResult& result) {
  return py::make_tuple(result.loss, result.n_valid, result.n_correct, result.weight_sum);
}

// Fills the arrays that are not None; returns (loss, n_valid, n_correct, weight_sum). See
// flatstep/loss.h.
py::tuple cross_entropy_arrays(py::handle logits_object, py::handle targets_object,
                               OptionsArg& options, py::handle loss_object, py::handle lse_object,
                               py::handle entropy_object, py::handle grad_object) {
  const bool in_place = grad_object.is(logits_object);
  const ArrayArg logits(logits_object, in_place ? "grad" : "logits",
                        in_place ? Access::write : Access::read);
  const IndexArg targets(targets_object, "targets");
  const ConstMatrix matrix = logits.matrix();
  const std::vector<std::int64_t> rows = leading_shape(logits);
  require_target_shape(targets, rows, "logits");
  const DType row_dtype = matrix.dtype == DType::f64 ? DType::f64 : DType::f32;
  const auto loss = row_array(loss_object, "loss", Access::write, rows, row_dtype);
  const auto lse = row_array(lse_object, "lse", Access::write, rows, row_dtype);
  const auto entropy = row_array(entropy_object, "entropy", Access::write, rows, row_dtype);
  options.take_arrays(rows, matrix.cols, row_dtype);

  CrossEntropyOutputs outputs;
  outputs.loss = data_or_null<void>(loss);
  outputs.lse = data_or_null<void>(lse);
  outputs.entropy = data_or_null<void>(entropy);
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
  CrossEntropyResult result;
  {
    const Unlocked unlocked;
    const std::size_t bytes =
        cross_entropy_workspace_bytes(matrix.rows, matrix.cols, matrix.dtype, options.options());
    const Scratch workspace(bytes);
    result = cross_entropy(matrix, targets.array(), options.options(), outputs, workspace.data(),
                           bytes, logits.device());
  }
  return as_tuple(result);
}

// The same for linear_cross_entropy.
py::tuple linear_cross_entropy_arrays(py::handle hidden_object, py::handle weight_object,
                                      py::handle bias_object, py::handle targets_object,
                                      OptionsArg& options, std::int64_t max_bytes,
                                      py::handle loss_object, py::handle lse_object,
                                      py::handle entropy_object, py::handle grad_hidden_object,
                                      py::handle grad_weight_object, py::handle grad_bias_object,
                                      bool accumulate) {
  const ArrayArg hidden(hidden_object, "hidden", Access::read);
  const ArrayArg weight(weight_object, "weight", Access::read);
  const IndexArg targets(targets_object, "targets");
  const ConstMatrix hidden_matrix = hidden.matrix(), weight_matrix = weight.matrix();
  const std::int64_t classes = weight_matrix.rows, width = hidden_matrix.cols;
  if (weight.shape().size() != 2 || classes == 0 || weight_matrix.cols != width) {
    throw py::value_error("weight: got shape " + shape_text(weight.shape()) +
                          ", expected [V, D] with V at least 1 and D " + std::to_string(width) +
                          ", as in hidden");
  }
  weight.require_dtype(hidden.dtype());
  const std::vector<std::int64_t> rows = leading_shape(hidden);
  require_target_shape(targets, rows, "hidden");
  const auto bias = row_array(bias_object, "bias", Access::read, {classes}, hidden.dtype());
  const auto loss = row_array(loss_object, "loss", Access::write, rows, DType::f32);
  const auto lse = row_array(lse_object, "lse", Access::write, rows, DType::f32);
  const auto entropy = row_array(entropy_object, "entropy", Access::write, rows, DType::f32);
  const auto grad_weight =
      row_array(grad_weight_object, "grad_weight", Access::write, {classes, width}, DType::f32);
  const auto grad_bias =
      row_array(grad_bias_object, "grad_bias", Access::write, {classes}, DType::f32);
  options.take_arrays(rows, classes, DType::f32);

  LinearCrossEntropyOutputs outputs;
  outputs.loss = data_or_null<float>(loss);
  outputs.lse = data_or_null<float>(lse);
  outputs.entropy = data_or_null<float>(entropy);
  outputs.grad_weight = data_or_null<float>(grad_weight);
  outputs.grad_bias = data_or_null<float>(grad_bias);
  outputs.accumulate = accumulate;
  std::optional<ArrayArg> grad_hidden;
  if (!grad_hidden_object.is_none()) {
    grad_hidden.emplace(grad_hidden_object, "grad_hidden", Access::write);
    grad_hidden->require_dtype(hidden.dtype());
    grad_hidden->require_shape(hidden.shape());
    outputs.grad_hidden = grad_hidden->data();
    outputs.grad_hidden_row_stride = grad_hidden->matrix().row_stride;
  }
  if (max_bytes < 0) {
    throw py::value_error("workspace_bytes: got " + std::to_string(max_bytes) +
                          ", expected a number of bytes");
  }
  CrossEntropyResult result;
  {
    const Unlocked unlocked;
    const std::size_t bytes = linear_cross_entropy_workspace_bytes(
        hidden_matrix.rows, width, classes, hidden.dtype(), options.options(),
        static_cast<std::size_t>(max_bytes));
    const Scratch workspace(bytes);
    result = linear_cross_entropy(hidden_matrix, weight_matrix, data_or_null<void>(bias),
                                  targets.array(), options.options(), outputs, workspace.data(),
                                  bytes, hidden.device());
  }
  return as_tuple(result);
}

}  // namespace

void bind_loss(py::module_& module) {
  py::enum_<Reduction>(module, "Reduction")
      .value("mean", Reduction::mean)
      .value("sum", Reduction::sum)
      .value("none", Reduction::none);
  py::enum_<OnEmpty>(module, "OnEmpty").value("zero", OnEmpty::zero).value("nan", OnEmpty::nan);
  py::class_<OptionsArg>(module, "LossOptions")
      .def(py::init<Reduction, double, std::int64_t, py::handle, py::handle, double,
                    std::optional<double>, std::optional<double>, OnEmpty, double, py::handle>(),
           py::arg("reduction"), py::arg("label_smoothing"), py::arg("ignore_index"),
           py::arg("class_weight"), py::arg("token_weight"), py::arg("z_loss"), py::arg("softcap"),
           py::arg("divisor"), py::arg("on_empty"), py::arg("grad_output"),
           py::arg("grad_output_rows"), py::keep_alive<1, 5>(), py::keep_alive<1, 6>(),
           py::keep_alive<1, 12>());
  module.def("cross_entropy", cross_entropy_arrays, py::arg("logits"), py::arg("targets"),
             py::arg("options"), py::arg("loss"), py::arg("lse"), py::arg("entropy"),
             py::arg("grad"));
  module.def("linear_cross_entropy", linear_cross_entropy_arrays, py::arg("hidden"),
             py::arg("weight"), py::arg("bias"), py::arg("targets"), py::arg("options"),
             py::arg("workspace_bytes"), py::arg("loss"), py::arg("lse"), py::arg("entropy"),
             py::arg("grad_hidden"), py::arg("grad_weight"), py::arg("grad_bias"),
             py::arg("accumulate"));
}

}  // namespace flatstep::python
