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
#include "python/exchange_api.h"
#include "python/status.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// Where a segment lies: (array, offset, size, first block of its 8-bit state, lr_scale,
// weight_decay or None, (beta1, beta2) or None, name).
using SegmentTuple =
    std::tuple<std::size_t, std::int64_t, std::int64_t, std::int64_t, double, std::optional<double>,
               std::optional<std::pair<double, double>>, std::string>;

// What a step on a CUDA device did.
class StepReport {
 public:
  StepReport(std::shared_ptr<const Optimizer> optimizer, const Device& device)
      : optimizer_(std::move(optimizer)), slot_(std::make_shared<StatusSlot>(device)) {}

  StepStatus* begin() { return slot_->begin<StepStatus>(); }
  void work_is_given() const {
    watch(slot_, [optimizer = optimizer_, slot = slot_.get()] {
      optimizer->result_of(slot->as<StepStatus>());
    });
  }
  // (grad_norm, clip_scale, skipped, nonfinite segment or -1, its index, lr, step). Waits at the
  // first time, or at any time for a graph. Throws what the step would have thrown.
  py::tuple values() {
    if (const auto slot = slot_) {  // another thread may read it during the wait
      wait_for(*slot);
      status_ = slot->as<StepStatus>();
      optimizer_->result_of(status_);
      if (!slot->captured()) slot_.reset();
    }
    return py::make_tuple(status_.grad_norm, status_.clip_scale, status_.skipped != 0,
                          status_.nonfinite_segment, status_.nonfinite_index, status_.lr,
                          status_.step_count);
  }

 private:
  std::shared_ptr<const Optimizer> optimizer_;
  std::shared_ptr<StatusSlot> slot_;  // until it is read
  StepStatus status_;
};

// Holds the parameter and state arrays; gradients come with each step. `buffers` are the state
// arrays by the names of Segment's members, each a list like params; all are our own but for
// "copy", which messages call `copy_name`.
class PyOptimizer {
 public:
  PyOptimizer(const OptimizerOptions& options, const py::list& params, const py::dict& buffers,
              const std::string& copy_name, const std::vector<SegmentTuple>& segments)
      : params_(take_arrays(params, "params", Access::write)),
        place_(place_of(params_)),
        stream_source_(params.empty() ? py::object() : py::object(params[0])),
        places_(segments) {
    OptimizerOptions complete = options;
    complete.dtype = common_dtype(params_);
    if (complete.dtype != DType::f32 && complete.dtype != DType::f64 &&
        complete.dtype != DType::bf16) {
      throw py::type_error(params_.front().name() + ": got " + name_of(complete.dtype) +
                           ", expected float32, float64 or bfloat16");
    }
    const auto take = [&](const char* name, const char* name_in_messages) {
      if (!buffers.contains(name)) return std::vector<ArrayArg>();
      return take_arrays(buffers[name], name_in_messages, Access::write, &place_);
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
    optimizer_ = std::make_shared<Optimizer>(complete, std::move(list), place_.device);
  }

  // (grad_norm, clip_scale, skipped, nonfinite segment or -1, its index, steps done), or a
  // StepReport. On a CUDA device the step runs where the params' library works now.
  py::object step(const py::list& grad_objects, py::handle device_lr, StepOptions options) {
    const bool cuda = place_.device.type == DeviceType::cuda;
    if (cuda) {
      place_.device.stream = current_stream(stream_source_, place_.device.index).value_or(0);
    }
    const std::vector<ArrayArg> grads = take_arrays(
        grad_objects, "grads", options.zero_grad ? Access::write : Access::read, &place_);
    require_like(grads, params_, "grads", "params");
    options.grad_dtype = common_dtype(grads);
    if ((*options.grad_dtype == DType::f64) != (optimizer_->options().dtype == DType::f64)) {
      grads.front().require_dtype(optimizer_->options().dtype);
    }
    std::vector<void*> pointers;
    for (const auto& place : places_) {
      pointers.push_back(at(grads, std::get<0>(place), std::get<1>(place)));
    }
    std::optional<ArrayArg> lr;
    if (!device_lr.is_none()) {
      lr.emplace(device_lr, "lr", Access::read, &place_);
      lr->require_dtype(DType::f64);
      if (lr->size() != 1) lr->require_shape({});
      options.device_lr = lr->as<const double>();
    }
    if (cuda) return step_without_wait(pointers, options);
    StepResult result;
    {
      const Unlocked unlocked;
      result = optimizer_->step(pointers, options);
    }
    return py::make_tuple(result.grad_norm, result.clip_scale, result.skipped,
                          result.nonfinite_segment, result.nonfinite_index,
                          optimizer_->step_count());
  }

  std::int64_t step_count() const {
    std::int64_t count = 0;
    waiting(place_.device, [&] { count = optimizer_->step_count(); });
    return count;
  }
  void set_step_count(std::int64_t count) {
    waiting(place_.device, [&] { optimizer_->set_step_count(count); });
  }

  Optimizer& optimizer() { return *optimizer_; }

 private:
  py::object step_without_wait(const std::vector<void*>& grads, StepOptions& options) {
    auto report = std::make_unique<StepReport>(optimizer_, place_.device);
    options.stream = place_.device.stream;
    options.status = report->begin();
    {
      const Unlocked unlocked;
      optimizer_->step(grads, options);
    }
    report->work_is_given();
    return py::cast(std::move(report));
  }

  static void* at(const std::vector<ArrayArg>& arrays, std::size_t index, std::int64_t offset) {
    if (arrays.empty()) return nullptr;
    const ArrayArg& array = arrays.at(index);
    return array.as<char>() + offset * size_of(array.dtype());
  }

  std::vector<ArrayArg> params_, copy_;
  Place place_;               // with the stream of the last step
  py::object stream_source_;  // the first of params, whose library knows its stream
  std::vector<std::vector<ArrayArg>> buffers_;
  std::vector<SegmentTuple> places_;
  std::shared_ptr<Optimizer> optimizer_;
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
  py::class_<StepReport>(module, "StepReport").def("values", &StepReport::values);
  py::class_<PyOptimizer>(module, "Optimizer")
      .def(py::init<const OptimizerOptions&, const py::list&, const py::dict&, const std::string&,
                    const std::vector<SegmentTuple>&>(),
           py::arg("options"), py::arg("params"), py::arg("buffers"), py::arg("copy_name"),
           py::arg("segments"))
      .def(
          "step",
          [](PyOptimizer& self, const py::list& grads, double lr, py::handle device_lr,
             std::optional<double> max_norm, double grad_scale, bool zero_grad,
             const GradPartials* partials) {
            StepOptions options;
            options.lr = lr;
            options.max_norm = max_norm;
            options.grad_scale = grad_scale;
            options.zero_grad = zero_grad;
            options.partials = partials;
            return self.step(grads, device_lr, options);
          },
          py::arg("grads"), py::arg("lr"), py::arg("device_lr"), py::arg("max_norm"),
          py::arg("grad_scale"), py::arg("zero_grad"), py::arg("partials"))
      .def_property("step_count", &PyOptimizer::step_count, &PyOptimizer::set_step_count)
      .def_property(
          "weight_decay", [](PyOptimizer& self) { return self.optimizer().options().weight_decay; },
          [](PyOptimizer& self, double decay) { self.optimizer().set_weight_decay(decay); });
}

}  // namespace flatstep::python
