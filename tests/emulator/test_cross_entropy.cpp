// The kernels of the loss under the emulator, against long double: every option and type, sizes
// around those of warps, blocks, clusters and stretches, all orders of the threads.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/cross_entropy.h"
#include "cuda/element.h"
#include "emulator.h"
#include "loss_oracle.h"

using namespace flatstep;

namespace {

constexpr std::int64_t kIgnore = -100;

// An array on the device, of its exact size: what lies beside it is watched.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T));
  }
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) {
    cudaMemcpy(data_, from.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> result(size_);
    cudaMemcpy(result.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return result;
  }

 private:
  std::size_t size_;
  T* data_ = nullptr;
};

struct Case {
  std::int64_t rows, classes;
  DType dtype = DType::f32;
  std::int64_t padding = 0;  // elements between rows
  std::int64_t shift = 0;    // elements before the first
  bool in_place = true;
  double scale = 3, offset = 0;
  double label_smoothing = 0, z_loss = 0, softcap = 0;
  bool class_weight = false, token_weight = false, upstream = false;
  double masked = 0;              // share of the classes
  bool ties = false;              // few different logits
  DType grad_dtype = DType::f32;  // of f32 logits out of place
  cuda::RowShape shape = {0, 0};  // instead of what the size asks for
};

std::size_t bytes_of(DType dtype) { return static_cast<std::size_t>(size_of(dtype)); }

float rounded(float x, DType dtype) {
  if (dtype == DType::bf16) return cuda::to_float(cuda::from_float<cuda::bf16_bits>(x));
  if (dtype == DType::f16) return cuda::to_float(cuda::from_float<cuda::f16_bits>(x));
  return x;
}

void put(unsigned char* to, float x, DType dtype) {
  if (dtype == DType::f32) {
    std::memcpy(to, &x, 4);
  } else if (dtype == DType::bf16) {
    const auto bits = cuda::from_float<cuda::bf16_bits>(x);
    std::memcpy(to, &bits, 2);
  } else {
    const auto bits = cuda::from_float<cuda::f16_bits>(x);
    std::memcpy(to, &bits, 2);
  }
}

float get(const unsigned char* from, DType dtype) {
  float x;
  if (dtype == DType::f32) {
    std::memcpy(&x, from, 4);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, 2);
  return dtype == DType::bf16 ? cuda::to_float(static_cast<cuda::bf16_bits>(bits))
                              : cuda::to_float(static_cast<cuda::f16_bits>(bits));
}

double ulp(double x) {
  const float f = std::fabs(static_cast<float>(x));
  return std::nextafter(f, std::numeric_limits<float>::infinity()) - f;
}

struct Input {
  std::vector<std::vector<float>> logits;
  std::vector<std::int64_t> targets;
  std::vector<float> class_weight, token_weight, upstream;
};

Input make_input(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(0, 1);
  Input in;
  for (std::int64_t i = 0; i < c.rows; ++i) {
    const auto target = static_cast<std::int64_t>(random() % static_cast<unsigned>(c.classes));
    in.targets.push_back(uniform(random) < 0.15f ? kIgnore : target);
    std::vector<float> row;
    for (std::int64_t j = 0; j < c.classes; ++j) {
      float x = normal(random) * static_cast<float>(c.scale) + static_cast<float>(c.offset);
      if (c.ties) x = std::nearbyint(x);
      if (uniform(random) < c.masked && j != target) x = -std::numeric_limits<float>::infinity();
      row.push_back(rounded(x, c.dtype));
    }
    in.logits.push_back(row);
    in.token_weight.push_back(uniform(random) * 2);
    in.upstream.push_back(normal(random));
  }
  for (std::int64_t j = 0; j < c.classes; ++j) in.class_weight.push_back(uniform(random) * 2);
  return in;
}

struct Output {
  LossTotals totals;
  std::vector<float> loss, lse, entropy;
  std::vector<unsigned char> gradient;  // with padding
  std::int64_t stride;
  DType dtype;
  float at(std::int64_t row, std::int64_t j) const {
    return get(gradient.data() + static_cast<std::size_t>(row * stride + j) * bytes_of(dtype),
               dtype);
  }
};

constexpr double kGradOutput = 0.7;
constexpr unsigned char kUntouched = 0x5a;

Output run(const Case& c, const Input& in) {
  const std::int64_t stride = c.classes + c.padding;
  const std::size_t count = static_cast<std::size_t>(c.shift + c.rows * stride);
  const DType grad_dtype = c.in_place ? c.dtype : c.grad_dtype;
  std::vector<unsigned char> bytes(count * bytes_of(c.dtype), kUntouched);
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t j = 0; j < c.classes; ++j) {
      put(bytes.data() + static_cast<std::size_t>(c.shift + i * stride + j) * bytes_of(c.dtype),
          in.logits[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)], c.dtype);
    }
  }
  const DeviceArray<unsigned char> logits(bytes);
  const DeviceArray<unsigned char> gradient(
      std::vector<unsigned char>(count * bytes_of(grad_dtype), kUntouched));
  const DeviceArray<std::int64_t> targets(in.targets);
  const DeviceArray<float> class_weight(in.class_weight), token_weight(in.token_weight);
  const DeviceArray<float> upstream(in.upstream);
  const auto rows_size = static_cast<std::size_t>(c.rows);
  const DeviceArray<float> loss(rows_size), lse(rows_size), entropy(rows_size);
  const DeviceArray<cuda::RowLoss> row_losses(rows_size);
  const DeviceArray<LossTotals> totals(1);
  const DeviceArray<cuda::TargetPart> parts(cuda::kTargetParts);

  CrossEntropyOptions options;
  options.reduction = Reduction::sum;
  if (c.class_weight) options.class_weight = class_weight.data();
  if (c.token_weight) options.token_weight = token_weight.data();
  options.ignore_index = kIgnore;
  const IndexArray index{targets.data(), DType::i64, c.rows};
  const LossTask task{index, c.classes, DType::f32, options};
  cuda::launch_start(task, parts.data(), totals.data(), nullptr);

  unsigned char* first = logits.data() + static_cast<std::size_t>(c.shift) * bytes_of(c.dtype);
  unsigned char* grad =
      c.in_place ? first
                 : gradient.data() + static_cast<std::size_t>(c.shift) * bytes_of(grad_dtype);
  const CrossEntropyRows rows{c.dtype,
                              first,
                              c.rows,
                              c.classes,
                              stride,
                              index,
                              kIgnore,
                              options.class_weight,
                              options.token_weight,
                              c.label_smoothing,
                              c.z_loss,
                              c.softcap,
                              kGradOutput,
                              c.upstream ? upstream.data() : nullptr,
                              loss.data(),
                              lse.data(),
                              entropy.data(),
                              grad,
                              grad_dtype,
                              stride,
                              false};
  if (c.softcap > 0) {
    cuda::launch_capped_rows(rows, totals.data(), row_losses.data(), nullptr);
  } else if (c.shape.cluster > 0) {
    cuda::launch_rows(rows, totals.data(), row_losses.data(), c.shape, nullptr);
  } else {
    cuda::launch_short_rows(rows, totals.data(), row_losses.data(), nullptr);
  }
  cuda::launch_row_sums(row_losses.data(), c.rows, totals.data(), nullptr);
  Output out{totals.host()[0], loss.host(), lse.host(), entropy.host(), {}, stride, grad_dtype};
  const std::vector<unsigned char> all = c.in_place ? logits.host() : gradient.host();
  const std::size_t skipped = static_cast<std::size_t>(c.shift) * bytes_of(grad_dtype);
  out.gradient.assign(all.begin() + static_cast<std::ptrdiff_t>(skipped), all.end());
  for (std::size_t i = 0; i < skipped; ++i) CHECK(all[i] == kUntouched);
  return out;
}

bool within(double got, double wanted, double bound, const char* what, std::int64_t row) {
  if (std::fabs(got - wanted) <= bound) return true;
  std::printf("  %s of row %lld: got %.9g, expected %.9g, bound %.3g\n", what,
              static_cast<long long>(row), got, wanted, bound);
  return false;
}

// The bounds of flatstep/loss.h.
void compare(const Case& c, const Input& in, const Output& out) {
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

std::string text_of(const Case& c) {
  char text[200];
  std::snprintf(
      text, sizeof text,
      "%lld x %lld, type %d to %d, shape %d/%d, smoothing %g, z %g, cap %g, scale %g + %g",
      static_cast<long long>(c.rows), static_cast<long long>(c.classes), static_cast<int>(c.dtype),
      static_cast<int>(c.grad_dtype), c.shape.cluster, c.shape.pairs, c.label_smoothing, c.z_loss,
      c.softcap, c.scale, c.offset);
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

Case case_of(std::int64_t rows, std::int64_t classes, cuda::RowShape shape = {0, 0}) {
  Case c{};
  c.rows = rows;
  c.classes = classes;
  c.shape = shape;
  return c;
}

// Sizes of the short rows' warps, then of the blocks and clusters of long ones.
void test_sizes(int orders) {
  for (const std::int64_t classes : {1, 2, 3, 31, 63, 64, 65, 255, 256, 257, 1000, 1023, 1024}) {
    test(case_of(37, classes), orders);
  }
  for (const std::int64_t classes : {1, 511, 1025, 4095, 4096}) {
    test(case_of(3, classes, {1, 8}), orders);
  }
  for (const std::int64_t classes : {5000, 16383, 16384})
    test(case_of(2, classes, {1, 32}), orders);
  for (const int cluster : {2, 4, 8}) test(case_of(2, 33000, {cluster, 32}), orders);
  test(case_of(3, 5000, {4, 8}), orders);
  test(case_of(3, 4097, {1, 8}), orders);   // two stretches, the second of one class
  test(case_of(2, 20001, {2, 8}), orders);  // three, of a cluster
}

void with_shapes(Case c, const std::function<void(const Case&)>& visit) {
  c.rows = 9;
  c.classes = 200;
  c.shape = {0, 0};
  visit(c);
  c.classes = 777;
  visit(c);
  c.rows = 3;
  c.classes = 2051;
  c.shape = {1, 8};
  visit(c);
  c.shape = {2, 32};
  visit(c);
  c.rows = 2;
  c.classes = 9001;
  c.shape = {2, 8};
  visit(c);
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

void test_kinds(int orders) {
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

void test_faults() {
  const auto fault_of = [](std::vector<std::int64_t> targets, std::vector<float> token_weight,
                           std::vector<float> class_weight, CrossEntropyOptions options) {
    const DeviceArray<std::int64_t> index(targets);
    const DeviceArray<float> tokens(token_weight), classes(class_weight);
    options.token_weight = tokens.data();
    options.class_weight = classes.data();
    const IndexArray array{index.data(), DType::i64, static_cast<std::int64_t>(targets.size())};
    const LossTask task{array, static_cast<std::int64_t>(class_weight.size()), DType::f32, options};
    const DeviceArray<LossTotals> totals(1);
    const DeviceArray<cuda::TargetPart> parts(cuda::kTargetParts);
    const DeviceArray<CrossEntropyStatus> status(1);
    cuda::launch_start(task, parts.data(), totals.data(), nullptr);
    cuda::launch_finish(task, totals.data(), status.data(), nullptr);
    return status.host()[0];
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::int64_t> targets(3000, 1);
  std::vector<float> tokens(3000, 1.0f), classes{1, 2, 0};
  CHECK(fault_of(targets, tokens, classes, {}).fault == LossFault::none);
  CHECK(fault_of(targets, tokens, classes, {}).result.weight_sum == 6000);
  auto wrong = targets;
  wrong[2999] = -1;
  wrong[1700] = 3;
  CrossEntropyStatus status = fault_of(wrong, tokens, classes, {});
  CHECK(status.fault == LossFault::target && status.where == 1700 && status.target == 3);
  CHECK_THROWS(result_of(status), OutOfRange, "row 1700 holds 3, expected a class from 0 to 2");
  auto spoilt = tokens;
  spoilt[12] = nan;
  status = fault_of(wrong, spoilt, classes, {});
  CHECK_THROWS(result_of(status), InvalidArgument, "token_weight: row 12 holds nan");
  status = fault_of(wrong, spoilt, {1, -1, 0}, {});
  CHECK_THROWS(result_of(status), InvalidArgument, "class_weight: element 1 holds -1");
  status = fault_of(targets, std::vector<float>(3000, -1.0f), classes, {});
  CHECK_THROWS(result_of(status), InvalidArgument, "sum to -6000");
}

}  // namespace

int main(int argc, char** argv) {
  const int orders = argc > 1 ? std::atoi(argv[1]) : 1;  // random ones
  const auto section = [&](const char* name, const std::function<void()>& body) {
    if (argc <= 2 || std::strcmp(argv[2], name) == 0) body();
  };
  section("sizes", [&] { test_sizes(orders); });
  section("options", [&] { test_options(orders); });
  section("ranges", [&] { test_ranges(orders); });
  section("kinds", [&] { test_kinds(orders); });
  section("special", test_special);
  section("alone", test_rows_alone);
  section("faults", test_faults);
  CHECK(emulator::live_allocations() == 0);
  return report();
}
