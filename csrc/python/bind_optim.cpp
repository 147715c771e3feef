#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/checks.h"
#include "core/optim.h"
#include "flatstep/optim.h"
#include "python/array_list.h"
#include "python/bindings.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// Where a segment lies: (array, offset, size, first block of its 8-bit state, lr_scale,
// weight_decay or None, (beta1, beta2) or None, name).
using SegmentTuple =
    std::tuple<std::size_t, std::int64_t, std::int64_t, std::int64_t, double, std::optional<double>,
               std::optional<std::pair<double, double>>, std::string>;

// Holds the parameter and state arrays; gradients come with each step. `buffers` are the state
// arrays by the names of Segment's members, each a list like params; all are our own but for
// "copy", which messages call `copy_name`.
class PyOptimizer {
 public:
  PyOptimizer(const OptimizerOptions& options, const py::list& params, const py::dict& buffers,
              const std::string& copy_name, const std::vector<SegmentTuple>& segments)
      : params_(take_arrays(params, "params", Access::write)), places_(segments) {
    OptimizerOptions complete = options;
    complete.dtype = common_dtype(params_);
    if (complete.dtype != DType::f32 && complete.dtype != DType::f64 &&
        complete.dtype != DType::bf16) {
      throw py::type_error(params_.front().name() + ": got " + name_of(complete.dtype) +
                           ", expected float32, float64 or bfloat16");
    }
    const auto take = [&](const char* name, const char* name_in_messages) {
      if (!buffers.contains(name)) return std::vector<ArrayArg>();
      return take_arrays(buffers[name], name_in_messages, Access::write);
    };
    for (const char* name : {"state1", "state2", "state3", "scale1", "scale2"}) {
      buffers_.push_back(take(name, name));
    }
    if (buffers.contains("copy")) {
      copy_ = take("copy", copy_name.c_str());
      require_like(copy_, params_, copy_name.c_str(), "params");
      // The core would not know that these are bfloat16 parameters, if they are.
      Buffers own;
      for (std::size_t i = 0; i < copy_.size(); ++i) {
        own.add(copy_[i].data(), copy_[i].size() * size_of(copy_[i].dtype()), copy_name.c_str(), i);
      }
      own.require_disjoint();
      for (const ArrayArg& copy : copy_) copy.require_dtype(DType::bf16);
    }
    std::vector<Segment> list;
    for (const auto& [array, offset, size, block, lr_scale, weight_decay, betas, name] : places_) {
      Segment segment;
      segment.param = at(params_, array, offset);
      segment.state1 = at(buffers_[0], array, offset);
      segment.state2 = at(buffers_[1], array, offset);
      segment.state3 = at(buffers_[2], array, offset);
      segment.scale1 = at(buffers_[3], array, block);
      segment.scale2 = at(buffers_[4], array, block);
      segment.bf16_copy = at(copy_, array, offset);
      segment.size = size;
      segment.lr_scale = lr_scale;
      segment.weight_decay = weight_decay;
      if (betas) segment.betas = Betas{betas->first, betas->second};
      segment.name = name;
      list.push_back(std::move(segment));
    }
    optimizer_ = std::make_unique<Optimizer>(complete, std::move(list));
  }

  py::tuple step(const py::list& grad_objects, StepOptions options) {
    const std::vector<ArrayArg> grads =
        take_arrays(grad_objects, "grads", options.zero_grad ? Access::write : Access::read);
    require_like(grads, params_, "grads", "params");
    options.grad_dtype = common_dtype(grads);
    if ((*options.grad_dtype == DType::f64) != (optimizer_->options().dtype == DType::f64)) {
      grads.front().require_dtype(optimizer_->options().dtype);
    }
    std::vector<void*> pointers;
    for (const auto& place : places_) {
      pointers.push_back(at(grads, std::get<0>(place), std::get<1>(place)));
    }
    StepResult result;
    {
      const Unlocked unlocked;
      result = optimizer_->step(pointers, options);
    }
    return py::make_tuple(result.grad_norm, result.clip_scale, result.skipped,
                          result.nonfinite_segment, result.nonfinite_index);
  }

  Optimizer& optimizer() { return *optimizer_; }

 private:
  static void* at(const std::vector<ArrayArg>& arrays, std::size_t index, std::int64_t offset) {
    if (arrays.empty()) return nullptr;
    const ArrayArg& array = arrays.at(index);
    return array.as<char>() + offset * size_of(array.dtype());
  }

  std::vector<ArrayArg> params_, copy_;
  std::vector<std::vector<ArrayArg>> buffers_;
  std::vector<SegmentTuple> places_;
  std::unique_ptr<Optimizer> optimizer_;
};

}  // namespace

void bind_optim(py::module_& module) {
  py::enum_<Algorithm>(module, "Algorithm")
      .value("sgd", Algorithm::sgd)
      .value("adam", Algorithm::adam)
      .value("adamw", Algorithm::adamw);
  py::enum_<OptimizerMode>(module, "OptimizerMode")
      .value("native", OptimizerMode::native)
      .value("torch", OptimizerMode::torch);
  py::enum_<StateFormat>(module, "StateFormat")
      .value("full", StateFormat::full)
      .value("block8", StateFormat::block8);
  py::class_<OptimizerOptions>(module, "OptimizerOptions")
      .def(py::init<>())
      .def_readwrite("algorithm", &OptimizerOptions::algorithm)
      .def_readwrite("mode", &OptimizerOptions::mode)
      .def_readwrite("state", &OptimizerOptions::state)
      .def_readwrite("beta1", &OptimizerOptions::beta1)
      .def_readwrite("beta2", &OptimizerOptions::beta2)
      .def_readwrite("eps", &OptimizerOptions::eps)
      .def_readwrite("weight_decay", &OptimizerOptions::weight_decay)
      .def_readwrite("momentum", &OptimizerOptions::momentum)
      .def_readwrite("dampening", &OptimizerOptions::dampening)
      .def_readwrite("nesterov", &OptimizerOptions::nesterov)
      .def_readwrite("amsgrad", &OptimizerOptions::amsgrad)
      .def_readwrite("maximize", &OptimizerOptions::maximize)
      .def_readwrite("seed", &OptimizerOptions::seed)
      .def_readwrite("max_consecutive_skips", &OptimizerOptions::max_consecutive_skips);
  py::class_<PyOptimizer>(module, "Optimizer")
      .def(py::init<const OptimizerOptions&, const py::list&, const py::dict&, const std::string&,
                    const std::vector<SegmentTuple>&>(),
           py::arg("options"), py::arg("params"), py::arg("buffers"), py::arg("copy_name"),
           py::arg("segments"))
      .def(
          "step",
          [](PyOptimizer& self, const py::list& grads, double lr, std::optional<double> max_norm,
             double grad_scale, bool zero_grad, const GradPartials* partials) {
            return self.step(grads, {lr, max_norm, grad_scale, zero_grad, std::nullopt, partials});
          },
          py::arg("grads"), py::arg("lr"), py::arg("max_norm"), py::arg("grad_scale"),
          py::arg("zero_grad"), py::arg("partials"))
      .def_property(
          "step_count", [](PyOptimizer& self) { return self.optimizer().step_count(); },
          [](PyOptimizer& self, std::int64_t count) { self.optimizer().set_step_count(count); })
      .def_property(
          "weight_decay", [](PyOptimizer& self) { return self.optimizer().options().weight_decay; },
          [](PyOptimizer& self, double decay) { self.optimizer().set_weight_decay(decay); });
}

}  // namespace flatstep::python
