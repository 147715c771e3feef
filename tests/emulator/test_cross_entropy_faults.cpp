// The loss's kernels where something is wrong with the arguments, or not asked for.
#include <cstdio>

#include "emulator.h"
#include "loss_case.h"

namespace loss_case {
namespace {

struct FaultCase {
  std::vector<std::int64_t> targets;
  std::vector<float> token_weight, class_weight;  // none if empty
  std::int64_t classes = 3;
};

CrossEntropyStatus status_of(const FaultCase& c) {
  const DeviceArray<std::int64_t> index(c.targets);
  const DeviceArray<float> tokens(c.token_weight), weights(c.class_weight);
  CrossEntropyOptions options;
  if (!c.token_weight.empty()) options.token_weight = tokens.data();
  if (!c.class_weight.empty()) options.class_weight = weights.data();
  const auto rows = static_cast<std::int64_t>(c.targets.size());
  const LossTask task{{index.data(), DType::i64, rows}, c.classes, DType::f32, options};
  const DeviceArray<LossTotals> totals(1);
  const DeviceArray<cuda::TargetPart> parts(cuda::kTargetParts);
  const DeviceArray<CrossEntropyStatus> status(1);
  cuda::launch_start(task, parts.data(), totals.data(), nullptr);
  cuda::launch_finish(task, totals.data(), status.data(), nullptr);
  return status.read()[0];
}

void test_arguments() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  FaultCase good;
  good.targets.assign(3000, 1);
  good.targets[2000] = 0;
  CHECK(status_of(good).fault == LossFault::none && status_of(good).result.weight_sum == 3000);
  good.token_weight.assign(3000, 1.0f);
  good.class_weight = {1, 2, 0.5f};
  CHECK(status_of(good).fault == LossFault::none && status_of(good).result.weight_sum == 5999);

  FaultCase wrong = good;
  wrong.targets[2999] = -1;
  wrong.targets[1700] = 3;
  CrossEntropyStatus status = status_of(wrong);
  CHECK(status.fault == LossFault::target && status.where == 1700 && status.target == 3);
  CHECK_THROWS(result_of(status), OutOfRange, "row 1700 holds 3, expected a class from 0 to 2");
  wrong.targets[1699] = -1;
  CHECK_THROWS(result_of(status_of(wrong)), OutOfRange, "row 1699 holds -1");

  // The first of all, whatever is wrong with it.
  wrong.targets[12] = 0;
  wrong.token_weight[12] = nan;
  CHECK_THROWS(result_of(status_of(wrong)), InvalidArgument, "token_weight: row 12 holds nan");
  for (const std::int64_t row : {31, 46, 47}) {
    FaultCase one = good;
    one.targets[static_cast<std::size_t>(row)] = 7;
    one.targets[2999] = 8;
    status = status_of(one);
    CHECK(status.fault == LossFault::target && status.where == row && status.target == 7);
  }
  wrong.class_weight = {1, -1, 0};
  CHECK_THROWS(result_of(status_of(wrong)), InvalidArgument, "class_weight: element 1 holds -1");

  FaultCase negative = good;
  negative.token_weight.assign(3000, -1.0f);
  CHECK_THROWS(result_of(status_of(negative)), InvalidArgument, "sum to -5999");

  FaultCase many = good;
  many.classes = 40000;  // more than threads
  many.class_weight.assign(40000, 0.5f);
  CHECK(status_of(many).fault == LossFault::none && status_of(many).result.weight_sum == 1500);
  many.class_weight[39999] = nan;
  many.class_weight[20000] = -2;
  CHECK_THROWS(result_of(status_of(many)), InvalidArgument, "element 20000 holds -2");
}

bool untouched(const std::vector<float>& fresh) {
  bool all = true;
  for (const float x : fresh) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    all &= bits == 0xffffffffu;
  }
  return all;
}

// With a fault nothing is computed; the gradient is zeros where that is asked for.
void test_no_rows(Case c) {
  c.padding = 5;
  c.fault = true;
  const Input in = make_input(c, 3);
  Case neither = c;
  neither.gradient = false;
  const Output before = run(neither, in);
  neither.zero_at_fault = true;
  CHECK(run(neither, in).gradient == before.gradient);
  for (const bool zeros : {false, true}) {
    c.zero_at_fault = zeros;
    const Output out = run(c, in);
    CHECK(out.totals.fault == LossFault::target && out.totals.loss == 0);
    CHECK(untouched(out.loss) && untouched(out.lse) && untouched(out.entropy));
    std::vector<unsigned char> wanted = before.gradient;
    for (std::int64_t i = 0; zeros && i < c.rows; ++i) {
      const auto first = static_cast<std::size_t>(i * out.stride) * bytes_of(out.dtype);
      std::memset(wanted.data() + first, 0,
                  static_cast<std::size_t>(c.classes) * bytes_of(out.dtype));
    }
    CHECK(out.gradient == wanted);
  }
}

void test_without(Case c) {
  const Input in = make_input(c, 4);
  const Output all = run(c, in);
  Case one = c;
  one.row_results = false;
  Output out = run(one, in);
  CHECK(out.gradient == all.gradient && out.totals.loss == all.totals.loss);
  CHECK(untouched(out.loss) && untouched(out.lse) && untouched(out.entropy));
  one = c;
  one.gradient = false;
  out = run(one, in);
  CHECK(out.loss == all.loss && out.lse == all.lse && out.entropy == all.entropy);
  CHECK(out.totals.loss == all.totals.loss && out.totals.correct == all.totals.correct);
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t j = 0; j < c.classes; ++j) {
      CHECK(out.at(i, j) == in.logits[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)]);
    }
  }
}

}  // namespace

void test_faults(int orders) { emulator::for_each_order(orders, test_arguments); }

void test_missing(int orders) {
  emulator::for_each_order(orders, [] {
    for (const double softcap : {0.0, 5.0}) {
      with_shapes({}, [&](Case c) {
        c.softcap = softcap;
        test_no_rows(c);
        test_without(c);
      });
    }
  });
}

}  // namespace loss_case
