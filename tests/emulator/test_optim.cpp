// Steps of the CUDA engine beside those of the CPU: every byte and every result the same, in all
// formats, whatever the order of the threads.
#include <algorithm>
#include <cstdlib>

#include "check.h"
#include "cuda/gradient.h"
#include "emulator.h"
#include "twin_optimizer.h"

namespace {

using namespace flatstep;

const std::vector<std::int64_t> kSizes = {300, 1, 128, 0, 4096 + 130, 129};

std::vector<Format> all_formats() {
  std::vector<Format> formats;
  for (const Algorithm algorithm : {Algorithm::sgd, Algorithm::adam, Algorithm::adamw}) {
    for (const DType params : {DType::f32, DType::bf16}) {
      for (const StateFormat state : {StateFormat::full, StateFormat::block8}) {
        for (const DType grads : {DType::f32, DType::bf16, DType::f16}) {
          Format format;
          format.options.algorithm = algorithm;
          format.options.dtype = params;
          format.options.state = state;
          format.options.momentum = 0.9;
          format.options.weight_decay = 0.1;
          format.options.seed = 0xfedcba9876543210u;
          format.grads = grads;
          format.copy = params == DType::f32 && grads != DType::f16;
          formats.push_back(format);
        }
      }
    }
  }
  return formats;
}

void test_steps(Format format, bool groups) {
  format.groups = groups;
  TwinOptimizer twin(format, kSizes);
  StepOptions step;
  step.lr = 0.01;
  for (int i = 0; i < 4; ++i) {
    twin.new_gradients();
    step.max_norm = i % 2 == 0 ? std::optional<double>(3.0) : std::nullopt;
    step.grad_scale = i < 2 ? 1.0 : 0.3;
    step.zero_grad = i >= 2;
    CHECK(twin.step(step) && !twin.result.skipped);
    if (i == 2) twin.set_step_count((std::int64_t{1} << 40) + 7);
    twin.options().weight_decay = 0.2;
  }
}

void test_variants() {
  Format format;
  format.options.weight_decay = 0.1;
  format.options.maximize = true;
  for (const Algorithm algorithm : {Algorithm::adam, Algorithm::adamw}) {
    format.options.algorithm = algorithm;
    format.options.amsgrad = true;
    test_steps(format, false);
  }
  format.options.algorithm = Algorithm::sgd;
  format.options.amsgrad = false;
  for (const StateFormat state : {StateFormat::full, StateFormat::block8}) {
    format.options.state = state;
    for (const double momentum : {0.0, 0.8}) {
      format.options.momentum = momentum;
      format.options.dampening = momentum > 0 ? momentum / 2 : 0.3;  // which counts for nothing
      format.options.nesterov = false;
      test_steps(format, true);
      if (momentum == 0) continue;
      format.options.dampening = 0;
      format.options.nesterov = true;
      test_steps(format, true);
    }
  }
}

// The first element in the order of the tensors is named, and nothing is written.
void test_skips() {
  for (const DType grads : {DType::f32, DType::bf16}) {
    Format format;
    format.grads = grads;
    TwinOptimizer twin(format, kSizes);
    StepOptions step;
    step.max_norm = 1.0;
    step.zero_grad = true;
    twin.new_gradients();
    CHECK(twin.step(step));
    int skips = 0;
    for (const float bad : {NAN, INFINITY, -INFINITY, 1e25f}) {
      twin.new_gradients();
      std::vector<float> values = normals(kSizes[4]);
      values[4096 + 77] = bad;
      values[4096 + 100] = NAN;
      twin.set_gradient(4, values);
      std::vector<float> last = normals(kSizes[5]);
      last[0] = INFINITY;
      twin.set_gradient(5, last);
      step.grad_scale = bad == 1e25f ? 1e-10 : 1.0;
      const Bytes before = twin.param(4);
      CHECK(twin.step(step) && twin.result.skipped && twin.param(4) == before);
      CHECK(twin.result.nonfinite_segment == 4 && twin.result.nonfinite_index == 4096 + 77);
      CHECK(twin.result.consecutive_skips == ++skips);
    }
    step.grad_scale = 1.0;
    twin.new_gradients();
    CHECK(twin.step(step) && !twin.result.skipped && twin.result.consecutive_skips == 0);
    step.max_norm = std::nullopt;
    twin.new_gradients(1e16f);  // large, but not too large
    CHECK(twin.step(step) && !twin.result.skipped);
    twin.new_gradients(1e19f);  // the squares of some overflow
    CHECK(twin.step(step) && twin.result.skipped);
    twin.new_gradients(0.0f);
    CHECK(twin.step(step) && !twin.result.skipped && twin.result.grad_norm == 0);
  }
}

void test_partials_are_handed_over() {
  for (const float bad : {1.0f, NAN, 1e30f}) {
    TwinOptimizer twin({}, kSizes);
    twin.new_gradients();
    std::vector<float> values = normals(kSizes[4]);
    values[5] = bad;
    twin.set_gradient(4, values);
    GradPartials host(kSizes), device(kSizes);
    const std::vector<const void*> inputs(twin.host_grads().begin(), twin.host_grads().end());
    backend_of({})->grad_norm(inputs, DType::f32, host);
    cuda::fill_partials(twin.device_grads().data(), DType::f32, device,
                        cuda::make_room(device, nullptr), nullptr);
    StepOptions step;
    if (!(bad > 1e20f)) step.max_norm = 2.0;  // else clipping would make it small enough
    step.partials = &host;
    const StepResult wanted = twin.step_on_cpu(step);
    step.partials = &device;
    const std::size_t before = emulator::launches();
    CHECK(TwinOptimizer::same_result(wanted, twin.step_on_device(step)) && twin.same());
    CHECK(emulator::launches() == before + 2 && wanted.skipped == (bad != 1.0f));
    step.partials = &host;
    CHECK_THROWS(twin.step_on_device(step), InvalidArgument, "partials");
  }
}

// Everything that a graph needs: no waiting, no copies, results and learning rate on the device.
void test_captured_step() {
  TwinOptimizer twin({}, kSizes);
  cudaStream_t stream;
  cuda::check(cudaStreamCreate(&stream), "stream");
  const DeviceArray<double> lr(std::vector<double>{0.25});
  const DeviceArray<StepStatus> status(std::vector<StepStatus>(1));
  StepOptions step;
  step.stream = reinterpret_cast<std::uintptr_t>(stream);
  step.lr = 99;
  step.device_lr = lr.data();
  step.status = status.data();
  twin.new_gradients();
  const std::size_t memory = emulator::live_allocations();
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  CHECK(!twin.step_on_device(step).skipped);
  cudaGraph_t graph;
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphDestroy(graph), "capture");
  CHECK(emulator::live_allocations() == memory);
  step.lr = 0.25;
  const StepResult wanted = twin.step_on_cpu(step);
  const StepStatus got = status.read()[0];
  CHECK(twin.same() && got.grad_norm == wanted.grad_norm && got.clip_scale == 1.0);
  CHECK(got.step_count == 1 && got.lr == 0.25 && got.skipped == 0 && got.nonfinite_segment == -1);

  step.status = nullptr;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  CHECK_THROWS(twin.step_on_device(step), RuntimeFailure, "without a status");
  if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
  cudaGetLastError();
  cuda::check(cudaStreamDestroy(stream), "stream");
}

void test_many_tensors() {
  std::vector<std::int64_t> sizes(420, 5);
  sizes[0] = sizes[191] = sizes[192] = sizes[419] = 0;
  sizes[200] = 4097;
  Format format;
  format.groups = true;
  TwinOptimizer twin(format, sizes);
  for (int i = 0; i < 2; ++i) {
    twin.new_gradients();
    CHECK(twin.step({0.01}) && !twin.result.skipped);
  }
  std::vector<float> values(5, 1.0f);
  values[3] = NAN;
  twin.set_gradient(400, values);
  CHECK(twin.step({0.01}) && twin.result.nonfinite_segment == 400);
  CHECK(twin.result.nonfinite_index == 3);
  TwinOptimizer nothing({}, {});
  CHECK(nothing.step({0.01}) && nothing.result.grad_norm == 0);
}

void test_refusals() {
  OptimizerOptions options;
  options.dtype = DType::f64;
  CHECK_THROWS(cuda::step_engine(options, {}, 0, nullptr), InvalidArgument,
               "params: got float64 on CUDA");
  options.dtype = DType::f32;
  options.mode = OptimizerMode::torch;
  CHECK_THROWS(cuda::step_engine(options, {}, 0, nullptr), InvalidArgument,
               "mode: got 'torch' on CUDA");
}

}  // namespace

int main(int argc, char** argv) {
  const int orders = argc > 1 ? std::atoi(argv[1]) : 50;  // random ones
  require_isa();
  if (std::string(cpu::kernels().isa) == "x86_64") return 77;  // it fuses no products and sums
  test_refusals();
  emulator::for_each_order(std::min(orders, 2), [] {
    for (const Format& format : all_formats()) test_steps(format, format.grads == DType::f32);
    test_variants();
    test_captured_step();
    test_many_tensors();
  });
  emulator::for_each_order(orders, [] {
    test_skips();
    test_partials_are_handed_over();
    Format format;
    format.options.state = StateFormat::block8;
    format.options.dtype = DType::bf16;
    test_steps(format, true);
  });
  CHECK(emulator::live_allocations() == 0);
  return report();
}
