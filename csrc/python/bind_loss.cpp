#include <memory>
#include <optional>
#include <vector>

#include "flatstep/loss.h"
#include "python/array_arg.h"
#include "python/bindings.h"
#include "python/plain_arg.h"
#include "python/scratch.h"
#include "python/status.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// A contiguous array of this shape and type, or nothing for None.
std::optional<ArrayArg> row_array(py::handle object, const char* name, Access access,
                                  const std::vector<std::int64_t>& shape, DType dtype,
                                  const Place& place) {
  if (object.is_none()) return std::nullopt;
  ArrayArg array(object, name, access, &place);
  array.require_dtype(dtype);
  array.require_contiguous();
  array.require_shape(shape);
  return array;
}

Reduction reduction_of(py::handle value) {
  constexpr const char* kNames[] = {"mean", "sum", "none"};
  constexpr Reduction kValues[] = {Reduction::mean, Reduction::sum, Reduction::none};
  return kValues[choice_of(value, kNames, 3, "reduction")];
}

OnEmpty on_empty_of(py::handle value) {
  constexpr const char* kNames[] = {"zero", "nan"};
  constexpr OnEmpty kValues[] = {OnEmpty::zero, OnEmpty::nan};
  return kValues[choice_of(value, kNames, 2, "on_empty")];
}

// The options of both functions, as they come from the caller; holds their arrays.
class OptionsArg {
 public:
  OptionsArg(py::handle reduction, py::handle label_smoothing, py::handle ignore_index,
             py::object class_weight, py::object token_weight, py::handle z_loss,
             py::handle softcap, py::handle divisor, py::handle on_empty, py::object grad_output)
      : class_weight_(std::move(class_weight)), token_weight_(std::move(token_weight)) {
    options_.reduction = reduction_of(reduction);
    options_.label_smoothing = number_of(label_smoothing, "label_smoothing");
    options_.ignore_index = integer_of(ignore_index, "ignore_index");
    options_.z_loss = number_of(z_loss, "z_loss");
    options_.softcap = optional_number_of(softcap, "softcap");
    options_.divisor = optional_number_of(divisor, "divisor");
    options_.on_empty = on_empty_of(on_empty);
    const bool is_number = PyFloat_CheckExact(grad_output.ptr()) != 0;
    if (is_number || !py::hasattr(grad_output, "__dlpack__")) {
      options_.grad_output = number_of(grad_output, "grad_output");
    } else {
      upstream_ = std::move(grad_output);
    }
  }

  // Takes the arrays: for rows of this shape, so many classes, and weights of this type.
  void take_arrays(const std::vector<std::int64_t>& rows, std::int64_t classes, DType dtype,
                   const Place& place) {
    const auto take = [&](py::handle object, const char* name,
                          const std::vector<std::int64_t>& shape) -> const void* {
      auto array = row_array(object, name, Access::read, shape, dtype, place);
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
  py::object class_weight_, token_weight_, upstream_ = py::none();
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

py::tuple as_tuple(const CrossEntropyResult& result) {
  return py::make_tuple(result.loss, result.n_valid, result.n_correct, result.weight_sum);
}

// The numbers of a call on a CUDA device.
class LossStatus {
 public:
  explicit LossStatus(const Device& device) : slot_(std::make_shared<StatusSlot>(device)) {}

  CrossEntropyStatus* begin() { return slot_->begin<CrossEntropyStatus>(); }
  void work_is_given() const {
    watch(slot_, [slot = slot_.get()] { result_of(slot->as<CrossEntropyStatus>()); });
  }
  // Waits at the first time, or at any time for a graph. Throws the call's fault.
  py::tuple values() {
    if (const auto slot = slot_) {  // another thread may read it during the wait
      wait_for(*slot);
      result_ = result_of(slot->as<CrossEntropyStatus>());
      if (!slot->captured()) slot_.reset();
    }
    return as_tuple(result_);
  }

 private:
  std::shared_ptr<StatusSlot> slot_;  // until it is read
  CrossEntropyResult result_;
};

// Runs call(status): on the CPU at once and returns the numbers, on a CUDA device without a wait
// and returns the LossStatus.
template <class Call>
py::object with_status(const Device& device, Call call) {
  if (device.type == DeviceType::cpu) {
    CrossEntropyResult result;
    {
      const Unlocked unlocked;
      result = call(nullptr);
    }
    return as_tuple(result);
  }
  auto status = std::make_unique<LossStatus>(device);
  {
    CrossEntropyStatus* const slot = status->begin();
    const Unlocked unlocked;
    call(slot);
  }
  status->work_is_given();
  return py::cast(std::move(status));
}

// Fills the arrays that are not None; returns (loss, n_valid, n_correct, weight_sum), or what will
// tell. See flatstep/loss.h.
py::object cross_entropy_arrays(py::handle logits_object, py::handle targets_object,
                                OptionsArg& options, py::handle loss_object, py::handle lse_object,
                                py::handle entropy_object, py::handle grad_object) {
  const bool in_place = grad_object.is(logits_object);
  const ArrayArg logits(logits_object, in_place ? "grad" : "logits",
                        in_place ? Access::write : Access::read);
  const Place place{logits.device(), "logits"};
  const IndexArg targets(targets_object, "targets", place);
  const ConstMatrix matrix = logits.matrix();
  const std::vector<std::int64_t> rows = leading_shape(logits);
  require_target_shape(targets, rows, "logits");
  const DType row_dtype = matrix.dtype == DType::f64 ? DType::f64 : DType::f32;
  const auto output = [&](py::handle object, const char* name) {
    return row_array(object, name, Access::write, rows, row_dtype, place);
  };
  const auto loss = output(loss_object, "loss");
  const auto lse = output(lse_object, "lse");
  const auto entropy = output(entropy_object, "entropy");
  options.take_arrays(rows, matrix.cols, row_dtype, place);

  CrossEntropyOutputs outputs;
  outputs.loss = data_or_null<void>(loss);
  outputs.lse = data_or_null<void>(lse);
  outputs.entropy = data_or_null<void>(entropy);
  std::optional<ArrayArg> grad;
  if (in_place) {
    outputs.grad = logits.data();
    outputs.grad_row_stride = matrix.row_stride;
  } else if (!grad_object.is_none()) {
    grad.emplace(grad_object, "grad", Access::write, &place);
    grad->require_dtype(matrix.dtype);
    grad->require_shape(logits.shape());
    const ConstMatrix layout = grad->matrix();
    outputs.grad = grad->data();
    outputs.grad_row_stride = layout.row_stride;
  }
  const Device& device = logits.device();
  return with_status(device, [&](CrossEntropyStatus* status) {
    outputs.status = status;
    const std::size_t bytes = cross_entropy_workspace_bytes(matrix.rows, matrix.cols, matrix.dtype,
                                                            options.options(), device);
    const Scratch workspace(bytes, device);
    return cross_entropy(matrix, targets.array(), options.options(), outputs, workspace.data(),
                         bytes, device);
  });
}

// The same for linear_cross_entropy.
py::object linear_cross_entropy_arrays(py::handle hidden_object, py::handle weight_object,
                                       py::handle bias_object, py::handle targets_object,
                                       OptionsArg& options, std::int64_t max_bytes,
                                       py::handle loss_object, py::handle lse_object,
                                       py::handle entropy_object, py::handle grad_hidden_object,
                                       py::handle grad_weight_object, py::handle grad_bias_object,
                                       bool accumulate) {
  const ArrayArg hidden(hidden_object, "hidden", Access::read);
  const Place place = hidden.place();
  const ArrayArg weight(weight_object, "weight", Access::read, &place);
  const IndexArg targets(targets_object, "targets", place);
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
  const auto bias = row_array(bias_object, "bias", Access::read, {classes}, hidden.dtype(), place);
  const auto output = [&](py::handle object, const char* name,
                          const std::vector<std::int64_t>& shape) {
    return row_array(object, name, Access::write, shape, DType::f32, place);
  };
  const auto loss = output(loss_object, "loss", rows);
  const auto lse = output(lse_object, "lse", rows);
  const auto entropy = output(entropy_object, "entropy", rows);
  const auto grad_weight = output(grad_weight_object, "grad_weight", {classes, width});
  const auto grad_bias = output(grad_bias_object, "grad_bias", {classes});
  options.take_arrays(rows, classes, DType::f32, place);

  LinearCrossEntropyOutputs outputs;
  outputs.loss = data_or_null<float>(loss);
  outputs.lse = data_or_null<float>(lse);
  outputs.entropy = data_or_null<float>(entropy);
  outputs.grad_weight = data_or_null<float>(grad_weight);
  outputs.grad_bias = data_or_null<float>(grad_bias);
  outputs.accumulate = accumulate;
  std::optional<ArrayArg> grad_hidden;
  if (!grad_hidden_object.is_none()) {
    grad_hidden.emplace(grad_hidden_object, "grad_hidden", Access::write, &place);
    grad_hidden->require_dtype(hidden.dtype());
    grad_hidden->require_shape(hidden.shape());
    outputs.grad_hidden = grad_hidden->data();
    outputs.grad_hidden_row_stride = grad_hidden->matrix().row_stride;
  }
  if (max_bytes < 0) {
    throw py::value_error("workspace_bytes: got " + std::to_string(max_bytes) +
                          ", expected a number of bytes");
  }
  const Device& device = hidden.device();
  return with_status(device, [&](CrossEntropyStatus* status) {
    outputs.status = status;
    const std::size_t bytes = linear_cross_entropy_workspace_bytes(
        hidden_matrix.rows, width, classes, hidden.dtype(), options.options(),
        static_cast<std::size_t>(max_bytes), device);
    const Scratch workspace(bytes, device);
    return linear_cross_entropy(hidden_matrix, weight_matrix, data_or_null<void>(bias),
                                targets.array(), options.options(), outputs, workspace.data(),
                                bytes, device);
  });
}

}  // namespace

void bind_loss(py::module_& module) {
  py::class_<OptionsArg>(module, "LossOptions")
      .def(py::init<py::handle, py::handle, py::handle, py::object, py::object, py::handle,
                    py::handle, py::handle, py::handle, py::object>(),
           py::arg("reduction"), py::arg("label_smoothing"), py::arg("ignore_index"),
           py::arg("class_weight"), py::arg("token_weight"), py::arg("z_loss"), py::arg("softcap"),
           py::arg("divisor"), py::arg("on_empty"), py::arg("grad_output"));
  py::class_<LossStatus>(module, "LossStatus").def("values", &LossStatus::values);
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
