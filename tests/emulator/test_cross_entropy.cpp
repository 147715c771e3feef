// The kernels of the loss under the emulator, against long double: every option and type, sizes
// around those of warps, blocks, clusters and stretches, all orders of the threads.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "emulator.h"
#include "loss_case.h"
#include "loss_oracle.h"

using namespace loss_case;

namespace {

bool within(double got, double wanted, double bound, const char* what, std::int64_t row) {
  if (std::fabs(got - wanted) <= bound) return true;
  std::printf("  %s of row %lld: got %.9g, expected %.9g, bound %.3g\n", what,
              static_cast<long long>(row), got, wanted, bound);
  return false;
}

}  // namespace

// The bounds of flatstep/loss.h.
void loss_case::compare(const Case& c, const Input& in, const Output& out) {
  const oracle::Options options{c.label_smoothing, c.z_loss, c.softcap,
                                c.class_weight ? in.class_weight.data() : nullptr};
  constexpr double kFloor = 0x1p-112;
  std::int64_t valid = 0, correct = 0;
  double sum = 0;
  for (std::int64_t i = 0; i < c.rows; ++i) {
    const auto at = static_cast<std::size_t>(i);
    for (std::int64_t j = c.classes; j < out.stride; ++j) {
      const auto place = static_cast<std::size_t>(i * out.stride + j) * bytes_of(out.dtype);
      CHECK(out.gradient[place] == kUntouched);
    }
    if (in.targets[at] == kIgnore) {
      bool zeros = out.loss[at] == 0 && out.lse[at] == 0 && out.entropy[at] == 0;
      for (std::int64_t j = 0; j < c.classes; ++j) zeros &= out.at(i, j) == 0;
      CHECK(zeros);
      continue;
    }
    const double token = c.token_weight ? in.token_weight[at] : 1.0;
    const oracle::Row wanted = oracle::row(in.logits[at], in.targets[at], token, options);
    ++valid;
    correct += wanted.correct ? 1 : 0;
    sum += wanted.loss;
    float largest = 0;
    for (const float x : in.logits[at]) {
      if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
    }
    const double shift = 4 * ulp(largest);
    const double z = c.z_loss * token * (2 * std::fabs(wanted.lse) + shift) * shift;
    CHECK(within(out.loss[at], wanted.loss, 4 * ulp(wanted.loss) + z + kFloor, "loss", i));
    CHECK(within(out.lse[at], wanted.lse, 4 * ulp(std::max<double>(std::fabs(wanted.lse), largest)),
                 "lse", i));
    CHECK(within(out.entropy[at], wanted.entropy, 8 * ulp(wanted.entropy) + kFloor, "entropy", i));
    const double factor = kGradOutput * (c.upstream ? in.upstream[at] : 1.0);
    const double bound = 8 * ulp(wanted.pulled) * std::fabs(factor * token) + kFloor;
    for (std::int64_t j = 0; j < c.classes; ++j) {
      const double g = wanted.gradient[static_cast<std::size_t>(j)] * factor;
      double room = bound + (j == in.targets[at] ? 2 * ulp(g) : 0.0);
      if (out.dtype == DType::bf16) room += std::fabs(g) * 0x1p-8;
      if (out.dtype == DType::f16) room += std::fabs(g) * 0x1p-11 + 0x1p-25;
      if (!within(out.at(i, j), g, room, "gradient", i)) {
        CHECK(!"gradient");
        return;
      }
    }
  }
  CHECK(out.totals.n_valid == valid);
  CHECK(out.totals.correct == correct);
  CHECK(within(out.totals.loss, sum, 4 * ulp(sum) + 1e-9, "sum", -1));
}

namespace {

std::string text_of(const Case& c) {
  char text[200];
  std::snprintf(
      text, sizeof text,
      "%lld x %lld, type %d to %d, shape %d/%d/%d/%d, smoothing %g, z %g, cap %g, scale %g + %g",
      static_cast<long long>(c.rows), static_cast<long long>(c.classes), static_cast<int>(c.dtype),
      static_cast<int>(c.grad_dtype), c.shape.cluster, c.shape.parts, c.shape.warps, c.shape.tiles,
      c.label_smoothing, c.z_loss, c.softcap, c.scale, c.offset);
  return text;
}

void test(const Case& c, int random_orders = 0) {
  const int before = failures;
  const Input in = make_input(c, static_cast<unsigned>(c.rows * 31 + c.classes));
  const Output first = run(c, in);
  compare(c, in, first);
  if (random_orders > 0) {
    emulator::for_each_order(random_orders, [&] {
      const Output other = run(c, in);
      CHECK(other.gradient == first.gradient);
      CHECK(std::memcmp(&other.totals.loss, &first.totals.loss, 8) == 0);
      CHECK(std::memcmp(other.loss.data(), first.loss.data(), first.loss.size() * 4) == 0);
    });
  }
  if (failures > before) std::printf("  in %s\n", text_of(c).c_str());
}
// Sizes of the short rows' warps, then of the blocks and clusters of long ones.
void test_sizes(int orders) {
  for (const std::int64_t classes : {1, 2, 3, 31, 63, 64, 65, 255, 256, 257, 1000, 1023, 1024}) {
    test(case_of(37, classes), orders);
  }
  for (const std::int64_t classes : {1, 511, 1025, 4095, 4096}) {
    test(case_of(3, classes, {1, 1, 2, 32}), orders);
  }
  for (const std::int64_t classes : {5000, 16383, 16384})
    test(case_of(2, classes, {1, 1, 8, 32}), orders);
  for (const int cluster : {2, 4, 8}) test(case_of(2, 33000, {cluster, 1, 8, 32}), orders);
  test(case_of(2, 33000, {1, 2, 4, 65}), orders);
  test(case_of(2, 33000, {2, 4, 2, 33}), orders);
  test(case_of(2, 33000, {8, 4, 1, 17}), orders);  // as many as a warp has lanes
  test(case_of(3, 5000, {4, 1, 2, 32}), orders);
  Case counted = case_of(37, 70);
  counted.count_targets = counted.class_weight = counted.token_weight = true;
  test(counted, orders);
  test(case_of(3, 4097, {1, 1, 2, 32}), orders);   // two stretches, the second of one class
  test(case_of(2, 20001, {2, 2, 1, 32}), orders);  // three, of a cluster
}
void test_options(int orders) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    // A third of the combinations for each type, all of them together.
    for (int bits = static_cast<int>(dtype == DType::bf16) + 2 * (dtype == DType::f16); bits < 64;
         bits += 3) {
      Case c{};
      c.dtype = c.grad_dtype = dtype;
      c.label_smoothing = bits & 1 ? 0.1 : 0.0;
      c.z_loss = bits & 2 ? 0.01 : 0.0;
      c.class_weight = (bits & 4) != 0;
      c.token_weight = (bits & 8) != 0;
      c.masked = bits & 16 ? 0.3 : 0.0;
      c.upstream = (bits & 32) != 0;
      c.in_place = bits % 3 != 0;
      c.padding = bits % 2 == 0 ? 0 : 5;
      c.shift = bits % 5 == 0 ? 1 : 0;
      with_shapes(c, [&](const Case& sized) { test(sized, bits % 16 == 5 ? orders : 0); });
    }
  }
}

// Every kernel with everything on, in fifty random orders of its threads and blocks.
void test_orders() {
  constexpr int kOrders = 50;
  Case c{};
  c.dtype = c.grad_dtype = DType::bf16;
  c.ties = c.class_weight = c.token_weight = c.upstream = true;
  c.label_smoothing = 0.1;
  c.z_loss = 0.01;
  c.masked = 0.3;
  with_shapes(c, [&](const Case& sized) { test(sized, kOrders); });
  c.rows = 5;
  c.classes = 700;
  c.softcap = 15;
  test(c, kOrders);
}

void test_ranges(int orders) {
  for (const double offset : {0.0, 1e4, 3e4, -1e6}) {
    for (const double scale : {1.0, 10.0, 100.0}) {
      Case c{};
      c.scale = scale;
      c.offset = offset;
      with_shapes(c, [&](const Case& sized) { test(sized); });
      c.label_smoothing = 0.2;
      with_shapes(c, [&](const Case& sized) { test(sized, scale == 10 ? orders : 0); });
    }
  }
}

// One class ties with the target, another warp's: nobody else may undo what that warp counts.
void test_two_largest(int orders) {
  with_shapes({}, [&](const Case& c) {
    Input in = make_input(c, 8);
    const std::int64_t last = c.classes - 1;
    for (std::size_t i = 0; i < in.logits.size(); ++i) {
      in.logits[i][40] = in.logits[i][static_cast<std::size_t>(last)] = 20;
      in.targets[i] = i % 2 == 0 ? last : 40;
    }
    emulator::for_each_order(orders, [&] { compare(c, in, run(c, in)); });
  });
}

void test_kinds(int orders) {
  test_two_largest(orders);
  Case ties{};
  ties.ties = true;
  ties.scale = 0.7;
  with_shapes(ties, [&](const Case& sized) { test(sized, orders); });
  for (const DType half : {DType::bf16, DType::f16}) {  // f32 logits, 16-bit gradient
    Case c{};
    c.in_place = false;
    c.grad_dtype = half;
    with_shapes(c, [&](const Case& sized) { test(sized, orders); });
  }
  test_gradient_elsewhere();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (int bits = 0; bits < 8; ++bits) {
      Case c = case_of(7, 700);
      c.dtype = c.grad_dtype = dtype;
      c.softcap = bits & 1 ? 15.0 : 3.3;
      c.label_smoothing = bits & 2 ? 0.1 : 0.0;
      c.masked = bits & 4 ? 0.3 : 0.0;
      c.class_weight = bits == 6;
      test(c, bits == 3 ? orders : 0);
    }
  }
}

// NaN and infinities stay in their rows.
void test_special() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  Case plain{};
  with_shapes(plain, [&](const Case& c) {
    for (const double smoothing : {0.0, 0.1}) {
      Case sized = c;
      sized.label_smoothing = smoothing;
      Input in = make_input(sized, 5);
      in.targets.assign(in.targets.size(), 3);
      const Output clean = run(sized, in);
      Input spoilt = in;
      spoilt.logits[0][7] = nan;
      spoilt.logits[1].assign(spoilt.logits[1].size(), -infinity);
      const Output out = run(sized, spoilt);
      for (const std::int64_t row : {0, 1}) {
        CHECK(std::isnan(out.loss[static_cast<std::size_t>(row)]));
        bool all = true;
        for (std::int64_t j = 0; j < sized.classes; ++j) all &= std::isnan(out.at(row, j));
        CHECK(all);
      }
      for (std::int64_t row = 2; row < sized.rows; ++row) {
        CHECK(out.loss[static_cast<std::size_t>(row)] == clean.loss[static_cast<std::size_t>(row)]);
        for (std::int64_t j = 0; j < sized.classes; ++j) CHECK(out.at(row, j) == clean.at(row, j));
      }
    }
  });
}

// A row alone has the bits that it has among others, wherever it lies; a 16-bit gradient is the f32
// one rounded.
void test_rows_alone() {
  Case plain{};
  plain.dtype = plain.grad_dtype = DType::bf16;
  with_shapes(plain, [&](const Case& c) {
    const Input in = make_input(c, 9);
    const Output all = run(c, in);
    Case single = c;
    single.dtype = single.grad_dtype = DType::f32;
    const Output exact = run(single, in);
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      Case alone = c;
      alone.rows = 1;
      alone.shift = row % 4;
      Input one = in;
      one.logits = {in.logits[at]};
      one.targets = {in.targets[at]};
      const Output out = run(alone, one);
      CHECK(out.loss[0] == all.loss[at]);
      bool same = true, once = true;
      for (std::int64_t j = 0; j < c.classes; ++j) {
        same &= out.at(0, j) == all.at(row, j);
        once &= rounded(exact.at(row, j), DType::bf16) == all.at(row, j);
      }
      CHECK(same);
      CHECK(once);
    }
  });
}

// The cut of a row holds all of it, fits the device, and does not depend on the type.
void test_shapes() {
  for (std::int64_t classes = 1025; classes < 40000000; classes += classes / 7) {
    for (const int largest_cluster : {1, 8, 16}) {
      for (const std::int64_t kilobytes : {48, 64, 99, 163, 227}) {
        const std::int64_t bytes = kilobytes << 10;
        const auto shape_of = [&](std::size_t element) {
          return cuda::row_shape(classes, element, largest_cluster, bytes);
        };
        const cuda::RowShape wide = shape_of(4), narrow = shape_of(2);
        CHECK(wide.warps == narrow.warps && wide.tiles == narrow.tiles);
        for (const std::int64_t element : {2, 4}) {
          const cuda::RowShape& shape = element == 2 ? narrow : wide;
          CHECK(shape.classes_of_block() * element + 512 <= bytes);
          CHECK(shape.threads() <= cuda::kMostThreads && shape.parts <= cuda::kMostParts);
          CHECK(shape.cluster >= 1 && shape.cluster <= largest_cluster);
          CHECK(shape.cluster * shape.parts <= cuda::kClusterParts);
          CHECK(shape.tiles <= 128);
        }
        // At once, or in the same stretches.
        const std::int64_t at_once = wide.cluster * wide.classes_of_block();
        CHECK(at_once == narrow.cluster * narrow.classes_of_block());
        CHECK(at_once >= classes || wide.cluster == largest_cluster);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int orders = argc > 1 ? std::atoi(argv[1]) : 1;  // random ones
  const auto section = [&](const char* name, const std::function<void()>& body) {
    if (argc <= 2 || std::strcmp(argv[2], name) == 0) body();
  };
  section("sizes", [&] {
    test_shapes();
    test_sizes(orders);
  });
  section("options", [&] { test_options(orders); });
  section("ranges", [&] { test_ranges(orders); });
  section("kinds", [&] { test_kinds(orders); });
  section("orders", test_orders);
  section("special", test_special);
  section("alone", test_rows_alone);
  section("targets", test_targets);
  section("rounds", [&] { test_rounds(orders); });
  section("faults", [&] { test_faults(orders); });
  section("missing", [&] { test_missing(orders); });
  CHECK(emulator::live_allocations() == 0);
  return report();
}
