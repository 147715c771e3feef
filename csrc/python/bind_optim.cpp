#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <vector>

#include "core/checks.h"
#include "flatstep/optim.h"
#include "python/array_arg.h"
#include "python/bindings.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// Where a segment lies: (array, offset, size, lr_scale, weight_decay or None, name).
using SegmentTuple =
    std::tuple<std::size_t, std::int64_t, std::int64_t, double, std::optional<double>, std::string>;

std::vector<ArrayArg> take_arrays(const py::list& objects, const std::string& name, Access access) {
  std::vector<ArrayArg> arrays;
  for (std::size_t i = 0; i < objects.size(); ++i) {
    arrays.emplace_back(objects[i],
                        objects.size() == 1 ? name : name + "[" + std::to_string(i) + "]", access);
    arrays.back().require_contiguous();
  }
  return arrays;
}

void require_same(const std::vector<ArrayArg>& arrays, const std::vector<ArrayArg>& params,
                  const char* name) {
  if (arrays.size() != params.size()) {
    throw py::value_error(std::string(name) + ": got " + std::to_string(arrays.size()) +
                          " arrays, expected " + std::to_string(params.size()) +
                          ", one for each of params");
  }
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    arrays[i].require_dtype(params[i].dtype());
    arrays[i].require_shape(params[i].shape());
  }
}

// Holds the parameter and state arrays; gradients come with each step.
class PyOptimizer {
 public:
  PyOptimizer(const OptimizerOptions& options, const py::list& params, const py::list& state1,
              const py::list& state2, const std::vector<SegmentTuple>& segments)
      : params_(take_arrays(params, "params", Access::write)),
        state1_(take_arrays(state1, "state1", Access::write)),
        state2_(take_arrays(state2, "state2", Access::write)),
        segments_(segments) {
    OptimizerOptions complete = options;
    if (!params_.empty()) complete.dtype = params_.front().dtype();
    for (const ArrayArg& param : params_) {
      if (param.dtype() != DType::f32 && param.dtype() != DType::f64) {
        throw py::type_error(param.name() + ": got " + name_of(param.dtype()) +
                             ", expected float32 or float64");
      }
      param.require_dtype(complete.dtype);
    }
    if (!state1_.empty()) require_same(state1_, params_, "state1");
    if (!state2_.empty()) require_same(state2_, params_, "state2");
    std::vector<Segment> list;
    for (const auto& [array, offset, size, lr_scale, weight_decay, name] : segments_) {
      list.push_back({at(params_, array, offset), at(state1_, array, offset),
                      at(state2_, array, offset), size, lr_scale, weight_decay, name});
    }
    optimizer_ = std::make_unique<Optimizer>(complete, std::move(list));
  }

  py::tuple step(const py::list& grad_objects, const StepOptions& options) {
    const std::vector<ArrayArg> grads =
        take_arrays(grad_objects, "grads", options.zero_grad ? Access::write : Access::read);
    require_same(grads, params_, "grads");
    std::vector<void*> pointers;
    for (const auto& segment : segments_) {
      pointers.push_back(at(grads, std::get<0>(segment), std::get<1>(segment)));
    }
    StepResult result;
    {
      const Unlocked unlocked;
      result = optimizer_->step(pointers, options);
    }
    return py::make_tuple(result.grad_norm, result.clip_scale, result.skipped,
                          result.nonfinite_segment, result.nonfinite_index);
  }

  std::int64_t step_count() const { return optimizer_->step_count(); }
  void set_step_count(std::int64_t count) { optimizer_->set_step_count(count); }

 private:
  static void* at(const std::vector<ArrayArg>& arrays, std::size_t index, std::int64_t offset) {
    if (arrays.empty()) return nullptr;
    const ArrayArg& array = arrays.at(index);
    return array.as<char>() + offset * size_of(array.dtype());
  }

  std::vector<ArrayArg> params_, state1_, state2_;
  std::vector<SegmentTuple> segments_;
  std::unique_ptr<Optimizer> optimizer_;
};

OptimizerOptions make_options(Algorithm algorithm, OptimizerMode mode, double beta1, double beta2,
                              double eps, double weight_decay, double momentum, double dampening,
                              bool nesterov, int max_consecutive_skips) {
  OptimizerOptions options;
  options.algorithm = algorithm;
  options.mode = mode;
  options.beta1 = beta1;
  options.beta2 = beta2;
  options.eps = eps;
  options.weight_decay = weight_decay;
  options.momentum = momentum;
  options.dampening = dampening;
  options.nesterov = nesterov;
  options.max_consecutive_skips = max_consecutive_skips;
  return options;
}

// (norm, nonfinite tensor or -1, its index); clips when max_norm is given.
py::tuple grad_norm_arrays(const py::list& objects, std::optional<double> max_norm) {
  const std::vector<ArrayArg> grads =
      take_arrays(objects, "grads", max_norm ? Access::write : Access::read);
  std::vector<void*> pointers;
  std::vector<std::int64_t> sizes;
  const DType dtype = grads.empty() ? DType::f32 : grads.front().dtype();
  for (const ArrayArg& grad : grads) {
    grad.require_dtype(dtype);
    pointers.push_back(grad.data());
    sizes.push_back(grad.size());
  }
  GradNorm norm;
  {
    const Unlocked unlocked;
    norm = max_norm ? clip_grad_norm(pointers, sizes, dtype, *max_norm)
                    : grad_norm({pointers.begin(), pointers.end()}, sizes, dtype);
  }
  return py::make_tuple(norm.norm, norm.nonfinite_segment, norm.nonfinite_index);
}

}  // namespace

void bind_optim(py::module_& module) {
  py::enum_<Algorithm>(module, "Algorithm")
      .value("sgd", Algorithm::sgd)
      .value("adam", Algorithm::adam)
      .value("adamw", Algorithm::adamw);
  py::enum_<OptimizerMode>(module, "OptimizerMode")
      .value("native", OptimizerMode::native)
      .value("torch", OptimizerMode::torch);
  py::class_<OptimizerOptions>(module, "OptimizerOptions")
      .def(py::init(&make_options), py::arg("algorithm"), py::arg("mode"), py::arg("beta1"),
           py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("momentum"),
           py::arg("dampening"), py::arg("nesterov"), py::arg("max_consecutive_skips"));
  py::class_<PyOptimizer>(module, "Optimizer")
      .def(py::init<const OptimizerOptions&, const py::list&, const py::list&, const py::list&,
                    const std::vector<SegmentTuple>&>(),
           py::arg("options"), py::arg("params"), py::arg("state1"), py::arg("state2"),
           py::arg("segments"))
      .def(
          "step",
          [](PyOptimizer& self, const py::list& grads, double lr, std::optional<double> max_norm,
             double grad_scale,
             bool zero_grad) { return self.step(grads, {lr, max_norm, grad_scale, zero_grad}); },
          py::arg("grads"), py::arg("lr"), py::arg("max_norm"), py::arg("grad_scale"),
          py::arg("zero_grad"))
      .def_property("step_count", &PyOptimizer::step_count, &PyOptimizer::set_step_count);
  module.def("grad_norm", grad_norm_arrays, py::arg("grads"), py::arg("max_norm") = py::none());
}

}  // namespace flatstep::python
