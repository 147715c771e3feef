// The public C++ API as an embedding program uses it: results, kinds of errors, nothing written.
#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

#include "check.h"
#include "flatstep/flatstep.h"
#include "flatstep/gpt.h"
#include "flatstep/memory.h"

namespace {

using namespace flatstep;

void test_cross_entropy() {
  const std::vector<double> p = {0.20, 0.50, 0.10, 0.10, 0.10};
  std::vector<double> logits, grad(5, 7.0);
  for (const double value : p) logits.push_back(std::log(value));
  std::vector<std::int64_t> target = {1};
  std::vector<char> workspace(cross_entropy_workspace_bytes(1, 5, DType::f64));
  CrossEntropyOutputs outputs;
  outputs.grad = grad.data();
  const auto call = [&] {
    return cross_entropy({logits.data(), DType::f64, 1, 5}, {target.data(), DType::i64, 1}, {},
                         outputs, workspace.data(), workspace.size());
  };
  CHECK(std::fabs(call().loss + std::log(0.50)) < 1e-15);
  for (int j = 0; j < 5; ++j) CHECK(std::fabs(grad[j] - (p[j] - (j == 1))) < 1e-15);

  const std::vector<double> before = grad;
  target[0] = 5;
  CHECK_THROWS(call(), OutOfRange, "row 0 holds 5");
  target[0] = 1;
  outputs.grad = logits.data() + 1;
  CHECK_THROWS(call(), InvalidArgument, "grad");
  outputs.grad = grad.data();
  workspace.resize(3);
  CHECK_THROWS(call(), InvalidArgument, "workspace_bytes");
  // One thread is enough for so few logits, but the workspace is that of all.
  const int threads = get_num_threads();
  set_num_threads(3);
  workspace.resize(cross_entropy_workspace_bytes(1, 5, DType::f64) - 1);
  CHECK_THROWS(call(), InvalidArgument, "workspace_bytes");
  CHECK(grad == before);
  workspace.resize(workspace.size() + 1);
  CHECK(std::fabs(call().loss + std::log(0.50)) < 1e-15);
  set_num_threads(threads);
}

void test_optimizer() {
  std::vector<float> p = {1.0f, -2.0f}, g = {0.5f, 0.25f}, m(2), v(2);
  OptimizerOptions options;
  options.weight_decay = 0.1;
  Optimizer adamw(options, {{p.data(), m.data(), v.data(), 2}});
  const StepResult result = adamw.step({g.data()}, {1e-2});
  CHECK(std::fabs(result.grad_norm - std::sqrt(0.3125)) < 1e-12);
  // The first step of Adam is the sign of the gradient.
  CHECK(std::fabs(p[0] - (1.0 - 1e-2 * (1.0 + 0.1 * 1.0))) < 1e-6);
  CHECK(std::fabs(p[1] - (-2.0 - 1e-2 * (1.0 - 0.1 * 2.0))) < 1e-6);
  CHECK(adamw.step_count() == 1);

  const std::vector<float> before = p;
  g[1] = NAN;
  const StepResult skipped = adamw.step({g.data()}, {1e-2});
  CHECK(skipped.skipped && skipped.nonfinite_segment == 0 && skipped.nonfinite_index == 1);
  CHECK(p == before && adamw.step_count() == 1);
  CHECK_THROWS(adamw.step({p.data()}, {1e-2}), InvalidArgument, "overlaps");
  CHECK_THROWS(adamw.step({g.data()}, {NAN}), InvalidArgument, "lr");
  CHECK_THROWS(Optimizer(options, {{p.data(), p.data(), v.data(), 2}}), InvalidArgument, "state1");
}

void test_schedules() {
  Schedule cosine{ScheduleKind::warmup_cosine, 1.0, 0.1, 4, 10};
  cosine.check();
  CHECK(cosine(0) == 0.25 && cosine(3) == 1.0 && std::fabs(cosine(9) - 0.1) < 1e-15);
  CHECK(cosine(10) == cosine(std::int64_t{1} << 53));
  cosine.convention = convention_of(cosine.kind, "hf");
  CHECK(cosine(0) == 0.0 && cosine(4) == 1.0 && cosine(16) == 1.0);
  CHECK_THROWS(convention_of(cosine.kind, "torch"), InvalidArgument, "'nanogpt' for warmup_cosine");
  CHECK(presets_of(ScheduleKind::one_cycle).size() == 3);

  Schedule wsd{ScheduleKind::wsd, 1.0, {}, 2, 10};
  wsd.decay = 4;
  wsd.shape = DecayShape::linear;
  CHECK(wsd(5) == 1.0 && wsd(6) == 0.75 && wsd(9) == 0.0);
  wsd.decay = 9;
  CHECK_THROWS(wsd.check(), InvalidArgument, "decay: got 9");
  wsd.total.reset();
  CHECK_THROWS(wsd.check(), InvalidArgument, "total: got none");
  CHECK_THROWS(cosine(-1), InvalidArgument, "step: got -1");
  CHECK(scale_lr(1.0, 64, 16) == 4.0 && scale_lr(1.0, 64, 16, ScaleRule::sqrt) == 2.0);
}

void test_errors_share_a_base() {
  try {
    Layout layout;
    layout.add("w", {2, -1});
    CHECK(false);
  } catch (const Error& error) {
    CHECK(std::string(error.message()).find("shape") != std::string::npos);
  }
  const Device cuda{DeviceType::cuda, 0, 0};
  if (!build_info().cuda_built) {
    float x = 1;
    CHECK_THROWS(dropout(&x, &x, 1, 0.5, {}, 0, cuda), RuntimeFailure, "cuda");
  }
}

void test_gpt() {
  CHECK_THROWS(Gpt({256, 64, 2, 3, 16, 0.0}), InvalidArgument, "n_embd");
  const Gpt gpt({17, 8, 1, 2, 8, 0.0});
  std::vector<float> params(gpt.layout().size()), grads(params.size(), 3.0f);
  gpt.initialize(params.data(), 1);
  const std::size_t bytes = gpt.training_workspace_bytes(1, 5);
  std::vector<std::max_align_t> memory(bytes / sizeof(std::max_align_t) + 8);
  std::vector<std::int64_t> tokens = {1, 2, 3, 4, 5}, targets = {2, 3, 4, 5, 17};
  const auto call = [&] {
    return gpt.forward_backward(params.data(), grads.data(), {tokens.data(), DType::i64, 1, 5},
                                {targets.data(), DType::i64, 1, 5}, {}, memory.data(), bytes);
  };
  CHECK_THROWS(call(), OutOfRange, "targets: row 0, position 4 holds 17");
  for (const float value : grads) CHECK(value == 3.0f);
  targets[4] = 6;
  CHECK(std::fabs(call() - std::log(17.0)) < 0.1);
}

// Recomputed activations: the same bits from a smaller workspace, which is as large as it says.
void test_recompute() {
  const Gpt gpt({17, 8, 3, 2, 8, 0.2});
  std::vector<float> params(gpt.layout().size()), grads[2];
  gpt.initialize(params.data(), 1);
  const std::vector<std::int64_t> ids = {1, 2, 3, 4, 5};
  double losses[2];
  for (const bool recompute : {false, true}) {
    const GptMemory memory = gpt.memory(1, 5, recompute);
    CHECK(memory.workspace == memory.tokens + memory.activations + memory.buffers);
    CHECK(memory.workspace == gpt.training_workspace_bytes(1, 5, recompute));
    CHECK(memory.params == params.size() * sizeof(float) && memory.grads == memory.params);
    grads[recompute].resize(params.size());
    std::vector<std::max_align_t> workspace(memory.workspace / sizeof(std::max_align_t) + 8);
    TrainOptions options;
    options.recompute = recompute;
    const auto call = [&](std::size_t bytes) {
      return gpt.forward_backward(params.data(), grads[recompute].data(),
                                  {ids.data(), DType::i64, 1, 5}, {ids.data(), DType::i64, 1, 5},
                                  options, workspace.data(), bytes);
    };
    CHECK_THROWS(call(memory.workspace - 1), InvalidArgument, "workspace");
    losses[recompute] = call(memory.workspace);
  }
  CHECK(losses[0] == losses[1] && grads[0] == grads[1]);
  CHECK(gpt.memory(1, 5, true).activations < gpt.memory(1, 5, false).activations / 2);
}

// Small pieces and those in huge pages; what cannot be had is bad_alloc.
void test_memory() {
  const Device cpu;
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{100},
                                  (std::size_t{2} << 20) - 1, (std::size_t{2} << 20) + 1}) {
    auto* memory = static_cast<unsigned char*>(allocate(bytes, cpu));
    CHECK(memory != nullptr);
    CHECK(reinterpret_cast<std::uintptr_t>(memory) % 64 == 0);
    for (std::size_t i = 0; i < bytes; ++i) memory[i] = static_cast<unsigned char>(i);
    CHECK(bytes == 0 || memory[bytes - 1] == static_cast<unsigned char>(bytes - 1));
    release(memory, cpu);
  }
  release(nullptr, cpu);
  for (const std::size_t bytes : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 4}) {
    bool thrown = false;
    try {
      release(allocate(bytes, cpu), cpu);
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    CHECK(thrown);
  }
}

}  // namespace

int main() {
  require_isa();
  test_cross_entropy();
  test_optimizer();
  test_schedules();
  test_errors_share_a_base();
  test_gpt();
  test_recompute();
  test_memory();
  return report();
}
