#include <pybind11/stl.h>

#include "core/checks.h"
#include "flatstep/schedule.h"
#include "python/bindings.h"

namespace flatstep::python {
namespace py = pybind11;
namespace {

template <class T>
using Optional = std::optional<T>;
using Count = std::int64_t;

// A whole number of any integer type; pybind11's own error would not say which argument it was.
Count step_of(const py::object& value) {
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) {
    PyErr_Clear();
    const std::string type = py::str(py::type::of(value).attr("__name__"));
    throw py::type_error("step: got " + type + ", expected an integer");
  }
  int overflow = 0;
  const long long step = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) {
    fail("step", py::str(index), "a number of finished steps from 0 to 2^53");
  }
  return step;
}

Schedule make(ScheduleKind kind, const std::string& preset, double base_lr, Optional<double> min_lr,
              Count warmup, Optional<Count> total, Count d_model, Optional<double> init_lr,
              DecayShape warmup_shape, double power, double waves, Optional<Count> timescale,
              Optional<Count> decay, Optional<DecayShape> shape, Optional<double> pct_start,
              Optional<double> pct_final, Optional<bool> three_phase, Optional<Count> cycles,
              Optional<Count> period, double period_mult, double shrink) {
  const Schedule schedule{kind,
                          base_lr,
                          min_lr,
                          warmup,
                          total,
                          d_model,
                          convention_of(kind, preset),
                          init_lr,
                          warmup_shape,
                          power,
                          waves,
                          timescale,
                          decay,
                          shape,
                          pct_start,
                          pct_final,
                          three_phase,
                          cycles,
                          period,
                          period_mult,
                          shrink};
  schedule.check();
  return schedule;
}

// The call that makes this schedule: "warmup_cosine(base_lr=0.001, warmup=10, total=50)".
std::string text_of(const Schedule& s) {
  const Schedule open;
  std::string text = std::string(name_of(s.kind)) + "(";
  const char* separator = "";
  const auto add = [&](const char* name, const py::object& value, bool given) {
    if (!given) return;
    text += separator + std::string(name) + "=" + std::string(py::repr(value));
    separator = ", ";
  };
  const auto add_shape = [&](const char* name, DecayShape shape, bool given) {
    add(name, py::str(name_of(shape)), given);
  };
  const auto add_optional = [&](const char* name, const auto& value) {
    if (value) add(name, py::cast(*value), true);
  };
  const bool noam = s.kind == ScheduleKind::noam;
  add("d_model", py::cast(s.d_model), noam);
  add("base_lr", py::cast(s.base_lr), !noam);
  const py::object warmup = s.pct_start ? py::none() : py::object(py::cast(s.warmup));
  add("warmup", warmup, s.kind != ScheduleKind::constant);
  add("factor", py::cast(s.base_lr), noam);
  add_optional("total", s.total);
  add_optional("min_lr", s.min_lr);
  add_optional("init_lr", s.init_lr);
  add_shape("warmup_shape", s.warmup_shape, s.warmup_shape != open.warmup_shape);
  add("power", py::cast(s.power), s.power != open.power);
  add("waves", py::cast(s.waves), s.waves != open.waves);
  add_optional("timescale", s.timescale);
  add_optional("decay", s.decay);
  if (s.shape) add_shape("shape", *s.shape, true);
  add_optional("pct_start", s.pct_start);
  add_optional("pct_final", s.pct_final);
  add_optional("three_phase", s.three_phase);
  add_optional("cycles", s.cycles);
  add_optional("period", s.period);
  add("period_mult", py::cast(s.period_mult), s.period_mult != open.period_mult);
  add("shrink", py::cast(s.shrink), s.shrink != open.shrink);
  const std::string preset = s.convention.preset;
  add("preset", py::cast(preset), preset != open.convention.preset);
  return text + ")";
}

void bind_enums(py::module_& module) {
  py::enum_<ScheduleKind> kinds(module, "ScheduleKind");
  for (int kind = 0; kind <= static_cast<int>(ScheduleKind::cosine_restarts); ++kind) {
    kinds.value(name_of(static_cast<ScheduleKind>(kind)), static_cast<ScheduleKind>(kind));
  }
  py::enum_<DecayShape> shapes(module, "DecayShape");
  for (int shape = 0; shape <= static_cast<int>(DecayShape::geometric); ++shape) {
    shapes.value(name_of(static_cast<DecayShape>(shape)), static_cast<DecayShape>(shape));
  }
  py::enum_<ScaleRule>(module, "ScaleRule")
      .value("linear", ScaleRule::linear)
      .value("sqrt", ScaleRule::sqrt);
}

}  // namespace

void bind_schedule(py::module_& module) {
  bind_enums(module);
  module.def("schedule_presets", presets_of, py::arg("kind"));
  module.def("scale_lr", scale_lr, py::arg("base_lr"), py::arg("batch"), py::arg("base_batch"),
             py::arg("rule"));
  const Schedule open;
  const py::none none;
  py::class_<Schedule>(module, "Schedule")
      .def(py::init(&make), py::arg("kind"), py::arg("preset"), py::kw_only(), py::arg("base_lr"),
           py::arg("min_lr") = none, py::arg("warmup") = 0, py::arg("total") = none,
           py::arg("d_model") = 0, py::arg("init_lr") = none,
           py::arg_v("warmup_shape", open.warmup_shape, "DecayShape.linear"),
           py::arg("power") = open.power, py::arg("waves") = open.waves,
           py::arg("timescale") = none, py::arg("decay") = none, py::arg("shape") = none,
           py::arg("pct_start") = none, py::arg("pct_final") = none, py::arg("three_phase") = none,
           py::arg("cycles") = none, py::arg("period") = none,
           py::arg("period_mult") = open.period_mult, py::arg("shrink") = open.shrink)
      .def_readonly("kind", &Schedule::kind)
      .def_readonly("warmup", &Schedule::warmup)
      .def_readonly("total", &Schedule::total)
      .def_property_readonly("preset", [](const Schedule& s) { return s.convention.preset; })
      .def(
          "__call__", [](const Schedule& s, const py::object& step) { return s(step_of(step)); },
          py::arg("step"))
      .def("__repr__", text_of);
}

}  // namespace flatstep::python
