#include <pybind11/stl.h>

#include <array>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "core/checks.h"
#include "flatstep/gpt.h"
#include "flatstep/runtime.h"
#include "python/array_arg.h"
#include "python/bindings.h"
#include "python/scratch.h"
#include "python/unlocked.h"

namespace flatstep::python {
namespace {

// The model runs there.
const Place kOnCpu;

// The tokens or targets of a batch, [T] or [B, T].
struct BatchArg {
  IndexArg index;
  TokenBatch batch;

  BatchArg(py::handle object, const char* name) : index(object, name, kOnCpu) {
    const auto& shape = index.shape();
    if (shape.size() != 1 && shape.size() != 2) {
      throw py::value_error(std::string(name) + ": got shape " + shape_text(shape) +
                            ", expected [batch, length]");
    }
    const IndexArray array = index.array();
    batch = {array.data, array.dtype, shape.size() == 1 ? 1 : shape[0], shape.back()};
  }
};

// Sequences that grow by several calls, and what lies between the calls.
struct PyGeneration {
  Generation sequences;
  Scratch scratch;
  std::mutex mutex;

  PyGeneration(std::int64_t batch, std::int64_t capacity, std::int64_t length) {
    sequences.batch = batch;
    sequences.capacity = capacity;
    sequences.length = length;
  }
};

class PyGpt {
 public:
  explicit PyGpt(const GptConfig& config) : gpt_(config) {}

  const Layout& layout() const { return gpt_.layout(); }

  void initialize(py::handle params_object, std::uint64_t seed) const {
    const ArrayArg params = flat(params_object, "params", Access::write);
    const Unlocked unlocked;
    gpt_.initialize(params.as<float>(), seed);
  }

  double forward_backward(py::handle params_object, py::handle grads_object,
                          py::handle tokens_object, py::handle targets_object,
                          const TrainOptions& options) {
    const ArrayArg params = flat(params_object, "params", Access::read);
    const ArrayArg grads = flat(grads_object, "grads", Access::write);
    const BatchArg tokens(tokens_object, "tokens"), targets(targets_object, "targets");
    const Unlocked unlocked;
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::array<std::int64_t, 4> shape{tokens.batch.batch, tokens.batch.length,
                                            options.recompute ? 1 : 0, get_num_threads()};
    if (shape != planned_) {
      planned_bytes_ =
          gpt_.training_workspace_bytes(tokens.batch.batch, tokens.batch.length, options.recompute);
      planned_ = shape;
    }
    const std::size_t bytes = planned_bytes_;
    return gpt_.forward_backward(params.as<const float>(), grads.as<float>(), tokens.batch,
                                 targets.batch, options, scratch_.at_least(bytes), bytes);
  }

  py::dict memory(std::int64_t batch, std::int64_t length, bool recompute) const {
    const GptMemory memory = gpt_.memory(batch, length, recompute);
    py::dict bytes;
    bytes["params"] = memory.params;
    bytes["grads"] = memory.grads;
    bytes["workspace"] = memory.workspace;
    bytes["tokens"] = memory.tokens;
    bytes["activations"] = memory.activations;
    bytes["buffers"] = memory.buffers;
    return bytes;
  }

  std::size_t held_bytes() const { return scratch_.bytes(); }

  double loss(py::handle params_object, py::handle tokens_object, py::handle targets_object) {
    const ArrayArg params = flat(params_object, "params", Access::read);
    const BatchArg tokens(tokens_object, "tokens"), targets(targets_object, "targets");
    const Unlocked unlocked;
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t bytes =
        gpt_.inference_workspace_bytes(tokens.batch.batch, tokens.batch.length);
    return gpt_.loss(params.as<const float>(), tokens.batch, targets.batch,
                     scratch_.at_least(bytes), bytes);
  }

  void logits(py::handle params_object, py::handle tokens_object, py::handle logits_object) {
    const ArrayArg params = flat(params_object, "params", Access::read);
    const BatchArg tokens(tokens_object, "tokens");
    const ArrayArg logits(logits_object, "logits", Access::write, &kOnCpu);
    logits.require_dtype(DType::f32);
    logits.require_contiguous();
    logits.require_shape({tokens.batch.batch, tokens.batch.length, gpt_.config().vocab_size});
    const Unlocked unlocked;
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t bytes =
        gpt_.inference_workspace_bytes(tokens.batch.batch, tokens.batch.length);
    gpt_.logits(params.as<const float>(), tokens.batch, logits.as<float>(),
                scratch_.at_least(bytes), bytes);
  }

  // ids: int64 [batch, capacity]. logits: f32 [batch, vocab_size], or None.
  void generate(py::handle params_object, py::handle ids_object, PyGeneration& generation,
                std::int64_t n, const SampleOptions& options, py::handle logits_object) const {
    Generation& sequences = generation.sequences;
    const ArrayArg params = flat(params_object, "params", Access::read);
    const ArrayArg ids(ids_object, "tokens", Access::write, &kOnCpu);
    ids.require_dtype(DType::i64);
    ids.require_contiguous();
    ids.require_shape({sequences.batch, sequences.capacity});
    std::optional<ArrayArg> logits;
    if (!logits_object.is_none()) {
      logits.emplace(logits_object, "logits", Access::write, &kOnCpu);
      logits->require_dtype(DType::f32);
      logits->require_contiguous();
      logits->require_shape({sequences.batch, gpt_.config().vocab_size});
    }
    const Unlocked unlocked;
    const std::lock_guard<std::mutex> lock(generation.mutex);
    const std::size_t bytes = gpt_.generation_workspace_bytes(sequences.batch, sequences.capacity);
    sequences.ids = ids.as<std::int64_t>();
    gpt_.generate(params.as<const float>(), sequences, n, options,
                  generation.scratch.at_least(bytes), bytes,
                  logits ? logits->as<float>() : nullptr);
  }

 private:
  ArrayArg flat(py::handle object, const char* name, Access access) const {
    ArrayArg array(object, name, access, &kOnCpu);
    array.require_dtype(DType::f32);
    array.require_contiguous();
    array.require_shape({gpt_.layout().size()});
    return array;
  }

  Gpt gpt_;
  Scratch scratch_;
  // What the last training pass asked for: batch, length, recomputation, threads; and its bytes.
  std::array<std::int64_t, 4> planned_{};
  std::size_t planned_bytes_ = 0;
  std::mutex mutex_;  // calls share the scratch memory
};

}  // namespace

void bind_gpt(py::module_& module) {
  py::class_<PyGeneration>(module, "Generation")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t>(), py::arg("batch"),
           py::arg("capacity"), py::arg("length"));
  py::class_<GptProfile>(module, "GptProfile")
      .def(py::init())
      .def_property_readonly("seconds", [](const GptProfile& p) {
        return std::map<std::string, double>{{"pass", p.pass},
                                             {"gemm", p.gemm},
                                             {"attention", p.attention},
                                             {"head", p.head},
                                             {"layer_norm", p.layer_norm},
                                             {"sums", p.sums},
                                             {"embedding", p.embedding}};
      });
  py::class_<PyGpt>(module, "Gpt")
      .def(py::init([](std::int64_t vocab_size, std::int64_t block_size, std::int64_t n_layer,
                       std::int64_t n_head, std::int64_t n_embd, double dropout) {
             return std::make_unique<PyGpt>(
                 GptConfig{vocab_size, block_size, n_layer, n_head, n_embd, dropout});
           }),
           py::arg("vocab_size"), py::arg("block_size"), py::arg("n_layer"), py::arg("n_head"),
           py::arg("n_embd"), py::arg("dropout"))
      .def_property_readonly("layout", &PyGpt::layout, py::return_value_policy::copy)
      .def("initialize", &PyGpt::initialize, py::arg("params"), py::arg("seed"))
      .def(
          "forward_backward",
          [](PyGpt& self, py::handle params, py::handle grads, py::handle tokens,
             py::handle targets, double label_smoothing, std::uint64_t seed, std::int64_t step,
             bool accumulate, double loss_divisor, GradPartials* partials, bool recompute,
             GptProfile* profile) {
            TrainOptions options;
            options.label_smoothing = label_smoothing;
            options.seed = seed;
            options.step = step;
            options.accumulate = accumulate;
            options.loss_divisor = loss_divisor;
            options.partials = partials;
            options.recompute = recompute;
            options.profile = profile;
            return self.forward_backward(params, grads, tokens, targets, options);
          },
          py::arg("params"), py::arg("grads"), py::arg("tokens"), py::arg("targets"),
          py::arg("label_smoothing"), py::arg("seed"), py::arg("step"), py::arg("accumulate"),
          py::arg("loss_divisor"), py::arg("partials"), py::arg("recompute") = false,
          py::arg("profile") = nullptr)
      .def("memory", &PyGpt::memory, py::arg("batch"), py::arg("length"), py::arg("recompute"))
      .def_property_readonly("held_bytes", &PyGpt::held_bytes)
      .def("loss", &PyGpt::loss, py::arg("params"), py::arg("tokens"), py::arg("targets"))
      .def("logits", &PyGpt::logits, py::arg("params"), py::arg("tokens"), py::arg("logits"))
      .def(
          "generate",
          [](const PyGpt& self, py::handle params, py::handle ids, PyGeneration& generation,
             std::int64_t n, double temperature, std::int64_t top_k, double top_p,
             std::uint64_t seed, py::handle logits) {
            self.generate(params, ids, generation, n, {temperature, top_k, top_p, seed}, logits);
          },
          py::arg("params"), py::arg("ids"), py::arg("generation"), py::arg("n"),
          py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("seed"),
          py::arg("logits"));
}

}  // namespace flatstep::python
