// Optimizers through the public header: 16-bit copies and parameters, 8-bit state, handed-over
// norms.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "flatstep/flatstep.h"

namespace {

using namespace flatstep;
using Halves = std::vector<std::uint16_t>;

std::vector<float> normals(std::size_t size, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(engine);
  return values;
}

float widened(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// The two bf16 numbers around a float, and the nearer one.
void test_convert() {
  const std::vector<float> from = normals(40001, 1);
  Halves halves(from.size());
  convert(from.data(), DType::f32, halves.data(), DType::bf16, 40001);
  bool nearest = true;
  for (std::size_t i = 0; i < from.size(); ++i) {
    const double spacing = std::ldexp(1.0, std::ilogb(from[i]) - 7);
    nearest &= std::fabs(static_cast<double>(widened(halves[i])) - from[i]) <= spacing / 2;
  }
  CHECK(nearest);
  std::vector<float> back(from.size());
  convert(halves.data(), DType::bf16, back.data(), DType::f32, 40001);
  bool exact = true;
  for (std::size_t i = 0; i < from.size(); ++i) exact &= back[i] == widened(halves[i]);
  CHECK(exact);

  const float special[] = {65504.0f, 65520.0f, 6e-8f, -0.0f, INFINITY, NAN};
  Halves bits(6);
  convert(special, DType::f32, bits.data(), DType::f16, 6);
  CHECK(bits[0] == 0x7bff && bits[1] == 0x7c00 && bits[2] == 1 && bits[3] == 0x8000);
  CHECK(bits[4] == 0x7c00 && (bits[5] & 0x7fff) > 0x7c00);
  convert(special, DType::f32, bits.data(), DType::bf16, 0);

  CHECK_THROWS(convert(from.data(), DType::f32, back.data(), DType::f32, 3), InvalidArgument, "to");
  CHECK_THROWS(convert(nullptr, DType::f32, bits.data(), DType::bf16, 3), InvalidArgument, "from");
  CHECK_THROWS(convert(back.data(), DType::f32, back.data(), DType::bf16, 3), InvalidArgument,
               "overlaps");
  CHECK_THROWS(convert(special, DType::f32, bits.data(), DType::bf16, -1), InvalidArgument, "size");
}

void test_partials_save_the_norm() {
  const std::vector<std::int64_t> sizes = {5000, 0, 17};
  std::vector<float> src = normals(5017, 2), totals(5017, NAN);
  const auto cut = [](std::vector<float>& all) {
    return std::vector<void*>{all.data(), all.data() + 5000, all.data() + 5000};
  };
  const std::vector<void*> outputs = cut(totals), inputs = cut(src);
  const std::vector<const void*> constant(inputs.begin(), inputs.end());
  AccumulateOptions options;
  options.overwrite = true;
  accumulate(outputs, constant, sizes, options);
  options.overwrite = false;
  options.scale = 0.5;
  const GradPartials partials = accumulate(outputs, constant, sizes, options);
  bool right = true;
  for (std::size_t i = 0; i < src.size(); ++i) right &= std::fabs(totals[i] - 1.5 * src[i]) < 1e-6;
  CHECK(right);
  CHECK(partials.chunks() == 3 && partials.sums.size() == 3);
  const std::vector<const void*> grads(outputs.begin(), outputs.end());
  GradPartials same;
  CHECK(partials.norm() == grad_norm(grads, sizes, DType::f32, {}, &same).norm);
  CHECK(same.sums == partials.sums && same.sizes == sizes);
  const Device cuda{DeviceType::cuda, 0};
  CHECK_THROWS(grad_norm(grads, sizes, DType::f32, cuda, &same), InvalidArgument, "partials");

  std::vector<float> p[2] = {src, src}, m[2], v[2];
  for (int i = 0; i < 2; ++i) {
    m[i].resize(5017);
    v[i].resize(5017);
    const auto at = [&](std::size_t offset, std::int64_t size) {
      return Segment{p[i].data() + offset, m[i].data() + offset, v[i].data() + offset, size};
    };
    Optimizer adamw({}, {at(0, 5000), at(5000, 0), at(5000, 17)});
    StepOptions step;
    step.lr = 0.1;
    step.max_norm = 0.5;
    step.partials = i == 0 ? nullptr : &partials;
    const StepResult result = adamw.step(outputs, step);
    CHECK(result.grad_norm == partials.norm() && result.clip_scale < 1);
    const GradPartials others({5000, 17});
    step.partials = &others;
    CHECK_THROWS(adamw.step(outputs, step), InvalidArgument, "partials");
  }
  CHECK(p[0] == p[1] && m[0] == m[1] && v[0] == v[1] && p[0] != src);

  options.src_dtype = DType::f64;
  CHECK_THROWS(accumulate(outputs, constant, sizes, options), InvalidArgument, "src");
  options = {};
  options.scale = NAN;
  CHECK_THROWS(accumulate(outputs, constant, sizes, options), InvalidArgument, "scale");
  CHECK_THROWS(accumulate(outputs, {grads.begin(), grads.end()}, sizes), InvalidArgument,
               "overlaps");
}

// The norm of these is beyond the range of doubles: no factor would be right.
void test_clipping_leaves_what_is_too_large() {
  std::vector<double> grads(4, 1.5e308);
  CHECK(std::isinf(clip_grad_norm({grads.data()}, {4}, DType::f64, 1.0).norm));
  CHECK(grads == std::vector<double>(4, 1.5e308));
}

// Adam's first steps are lr times the sign, whatever the format of the state.
void test_block8() {
  constexpr std::int64_t kSize = 300, kBlocks = 3;
  static_assert((kSize + kStateBlock - 1) / kStateBlock == kBlocks);
  std::vector<float> p(kSize, 1.0f), g = normals(kSize, 3);
  std::vector<std::uint8_t> m(kSize), v(kSize);
  Halves scale1(kBlocks), scale2(kBlocks);
  OptimizerOptions options;
  options.state = StateFormat::block8;
  Segment segment{p.data(), m.data(), v.data(), kSize};
  CHECK_THROWS(Optimizer(options, {segment}), InvalidArgument, "scale1");
  segment.scale1 = scale1.data();
  segment.scale2 = scale1.data();
  CHECK_THROWS(Optimizer(options, {segment}), InvalidArgument, "overlaps");
  segment.scale2 = scale2.data();
  Optimizer adamw(options, {segment});
  for (int i = 0; i < 3; ++i) CHECK(!adamw.step({g.data()}, {0.1}).skipped);
  bool moved = true;
  for (std::size_t i = 0; i < p.size(); ++i) {
    moved &= std::fabs(p[i] - (1 - std::copysign(0.3f, g[i]))) < 0.1;
  }
  CHECK(moved && scale1[2] > 0 && scale2[2] > 0);
  const std::vector<float> before = p;
  g[299] = NAN;
  CHECK(adamw.step({g.data()}, {0.1}).nonfinite_index == 299 && p == before);

  options.amsgrad = true;
  CHECK_THROWS(Optimizer(options, {segment}), InvalidArgument, "amsgrad");
  options.amsgrad = false;
  options.mode = OptimizerMode::torch;
  CHECK_THROWS(Optimizer(options, {segment}), InvalidArgument, "mode");
}

void test_bf16() {
  constexpr std::int64_t kSize = 20000;
  Halves p(kSize, 0x3f80), copy(kSize), g(kSize, 0x3f80);
  OptimizerOptions options;
  options.algorithm = Algorithm::sgd;
  options.dtype = DType::bf16;
  options.seed = 9;
  Optimizer sgd(options, {{p.data(), nullptr, nullptr, kSize}});
  // A tenth of the spacing below 1: one element in ten moves.
  sgd.step({g.data()}, {std::ldexp(1.0, -8) / 10});
  double mean = 0;
  for (const std::uint16_t bits : p) {
    CHECK(bits == 0x3f80 || bits == 0x3f7f);
    mean += widened(bits);
  }
  CHECK(std::fabs((1 - mean / kSize) / (std::ldexp(1.0, -8) / 10) - 1) < 0.1);

  options.dtype = DType::f32;
  std::vector<float> master = normals(kSize, 4);
  Segment segment{master.data(), nullptr, nullptr, kSize};
  segment.bf16_copy = copy.data();
  Optimizer mixed(options, {segment});
  StepOptions step;
  step.grad_dtype = DType::bf16;
  step.zero_grad = true;
  CHECK(!mixed.step({g.data()}, step).skipped && g == Halves(kSize));
  Halves wanted(kSize);
  convert(master.data(), DType::f32, wanted.data(), DType::bf16, kSize);
  CHECK(copy == wanted);
  step.grad_dtype = DType::f64;
  CHECK_THROWS(mixed.step({g.data()}, step), InvalidArgument, "grads");
  options.dtype = DType::f16;
  CHECK_THROWS(Optimizer(options, {segment}), InvalidArgument, "params");
}

// A square that overflows skips the step, and scales far from 1 make nothing of zeros.
void test_range() {
  std::vector<float> p = {1.0f, 2.0f}, m(2), v(2), g = {0.0f, 1e20f};
  Optimizer adamw({}, {{p.data(), m.data(), v.data(), 2}});
  const StepResult skipped = adamw.step({g.data()}, {0.1});
  CHECK(skipped.skipped && skipped.nonfinite_index == 1 && p[1] == 2.0f && v[1] == 0.0f);
  g[1] = 0.0f;
  StepOptions step;
  step.grad_scale = 1e-60;
  CHECK(!adamw.step({g.data()}, step).skipped && p[0] == 1.0f && p[1] == 2.0f);
  adamw.set_step_count((std::int64_t{1} << 48) - 1);
  CHECK_THROWS(adamw.step({g.data()}, step), InvalidArgument, "step_count");
  CHECK_THROWS(adamw.set_step_count(std::int64_t{1} << 48), InvalidArgument, "step_count");
  CHECK_THROWS(adamw.set_weight_decay(-1), InvalidArgument, "weight_decay");
}

void test_groups() {
  Layout layout;
  layout.add("w", {2, 3});
  layout.add("b", {3}, 0.5, std::nullopt, Betas{0.5, 0.9});
  layout.leave_vectors_undecayed();
  CHECK(!layout.at("w").weight_decay && *layout.at("b").weight_decay == 0.0);
  CHECK_THROWS(layout.add("c", {1}, 1.0, 0.0, Betas{1.0, 0.9}), InvalidArgument, "betas");
  std::vector<float> p(9, 1.0f), m(9), v(9), g(9, 0.0f);
  OptimizerOptions options;
  options.weight_decay = 0.1;
  Optimizer adamw(options, segments_of(layout, DType::f32, p.data(), m.data(), v.data()));
  adamw.step({g.data(), g.data() + 6}, {0.1});
  CHECK(std::fabs(p[5] - 0.99f) < 1e-6f && p[6] == 1.0f);
}

}  // namespace

int main() {
  require_isa();
  test_convert();
  test_partials_save_the_norm();
  test_clipping_leaves_what_is_too_large();
  test_block8();
  test_bf16();
  test_range();
  test_groups();
  return report();
}
