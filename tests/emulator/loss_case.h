// One call of the loss's kernels: its input, and what comes of it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/cross_entropy.h"
#include "cuda/element.h"
#include "device_array.h"

namespace loss_case {

using namespace flatstep;

constexpr std::int64_t kIgnore = -100;

struct Case {
  std::int64_t rows, classes;
  DType dtype = DType::f32;
  std::int64_t padding = 0;  // elements between rows
  std::int64_t shift = 0;    // elements before the first
  bool in_place = true;
  std::int64_t gradient_shift = 0;  // out of place, so many more before the gradient's first
  double scale = 3, offset = 0;
  double label_smoothing = 0, z_loss = 0, softcap = 0;
  bool class_weight = false, token_weight = false, upstream = false;
  double masked = 0;                    // share of the classes
  bool ties = false;                    // few different logits, and targets among the largest
  DType grad_dtype = DType::f32;        // of f32 logits out of place
  cuda::RowShape shape = {0, 0, 0, 0};  // instead of what the size asks for
  bool row_results = true;              // loss, log-sum-exp and entropy of each row
  bool gradient = true;
  bool fault = false;
  bool zero_at_fault = false;
  bool count_targets = false;                // by the device, which takes longer than the rows
  std::int64_t most_rows = cuda::kMostRows;  // launched at a time
};

inline std::size_t bytes_of(DType dtype) { return static_cast<std::size_t>(size_of(dtype)); }

inline float rounded(float x, DType dtype) {
  if (dtype == DType::bf16) return cuda::to_float(cuda::from_float<cuda::bf16_bits>(x));
  if (dtype == DType::f16) return cuda::to_float(cuda::from_float<cuda::f16_bits>(x));
  return x;
}

inline void put(unsigned char* to, float x, DType dtype) {
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

inline float get(const unsigned char* from, DType dtype) {
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

inline double ulp(double x) {
  const float f = std::fabs(static_cast<float>(x));
  return std::nextafter(f, std::numeric_limits<float>::infinity()) - f;
}

struct Input {
  std::vector<std::vector<float>> logits;
  std::vector<std::int64_t> targets;
  std::vector<float> class_weight, token_weight, upstream;
};

// The first, the last or any other of the largest logits.
inline std::int64_t one_of_largest(const std::vector<float>& row, std::int64_t number) {
  const float largest = *std::max_element(row.begin(), row.end());
  std::vector<std::int64_t> places;
  for (std::size_t j = 0; j < row.size(); ++j) {
    if (row[j] == largest) places.push_back(static_cast<std::int64_t>(j));
  }
  return number % 3 == 0   ? places.front()
         : number % 3 == 1 ? places.back()
                           : places[places.size() / 2];
}

inline Input make_input(const Case& c, unsigned seed) {
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
    if (c.ties) in.targets.back() = one_of_largest(row, i);
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

// What the device finds in the targets before the rows.
inline LossTotals totals_of(const Case& c, const Input& in) {
  LossTotals totals{};
  for (const std::int64_t target : in.targets) totals.n_valid += target != kIgnore ? 1 : 0;
  totals.factor = 1;
  totals.fault = c.fault ? LossFault::target : LossFault::none;
  return totals;
}

inline Output run(const Case& c, const Input& in) {
  const std::int64_t stride = c.classes + c.padding;
  const std::size_t count = static_cast<std::size_t>(c.shift + c.rows * stride);
  const DType grad_dtype = c.in_place ? c.dtype : c.grad_dtype;
  const std::int64_t gradient_shift = c.in_place ? 0 : c.gradient_shift;
  const std::size_t skipped =
      static_cast<std::size_t>(c.shift + gradient_shift) * bytes_of(grad_dtype);
  std::vector<unsigned char> bytes(count * bytes_of(c.dtype), kUntouched);
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t j = 0; j < c.classes; ++j) {
      put(bytes.data() + static_cast<std::size_t>(c.shift + i * stride + j) * bytes_of(c.dtype),
          in.logits[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)], c.dtype);
    }
  }
  const DeviceArray<unsigned char> logits(bytes);
  const DeviceArray<unsigned char> gradient(std::vector<unsigned char>(
      (count + static_cast<std::size_t>(gradient_shift)) * bytes_of(grad_dtype), kUntouched));
  const DeviceArray<std::int64_t> targets(in.targets);
  const DeviceArray<float> class_weight(in.class_weight), token_weight(in.token_weight);
  const DeviceArray<float> upstream(in.upstream);
  const auto rows_size = static_cast<std::size_t>(c.rows);
  const DeviceArray<float> loss(rows_size), lse(rows_size), entropy(rows_size);
  const DeviceArray<cuda::RowRecord> records(rows_size);
  const DeviceArray<cuda::RowsPart> parts_of_rows(
      static_cast<std::size_t>(cuda::row_parts(c.rows)));
  const DeviceArray<LossTotals> totals(std::vector<LossTotals>{totals_of(c, in)});
  CrossEntropyOptions options;
  options.reduction = Reduction::sum;
  if (c.class_weight) options.class_weight = class_weight.data();
  if (c.token_weight) options.token_weight = token_weight.data();
  options.ignore_index = kIgnore;
  const IndexArray index{targets.data(), DType::i64, c.rows};
  if (c.count_targets) {
    const DeviceArray<cuda::TargetPart> parts(cuda::kTargetParts);
    const LossTask task{index, c.classes, DType::f32, options};
    cuda::launch_start(task, parts.data(), totals.data(), nullptr);
  }

  unsigned char* first = logits.data() + static_cast<std::size_t>(c.shift) * bytes_of(c.dtype);
  unsigned char* grad = c.in_place ? first : gradient.data() + skipped;
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
                              c.row_results ? loss.data() : nullptr,
                              c.row_results ? lse.data() : nullptr,
                              c.row_results ? entropy.data() : nullptr,
                              c.gradient ? grad : nullptr,
                              grad_dtype,
                              stride,
                              c.zero_at_fault};
  if (c.softcap > 0) {
    cuda::launch_capped_rows(rows, totals.data(), records.data(), nullptr, c.most_rows);
  } else if (c.shape.cluster > 0) {
    cuda::launch_rows(rows, totals.data(), records.data(), c.shape, nullptr, c.most_rows);
  } else {
    cuda::launch_short_rows(rows, totals.data(), records.data(), nullptr);
  }
  cuda::launch_row_ends(rows, records.data(), parts_of_rows.data(), totals.data(), nullptr);
  Output out{totals.read()[0], loss.read(), lse.read(), entropy.read(), {}, stride, grad_dtype};
  const std::vector<unsigned char> all = c.in_place ? logits.read() : gradient.read();
  out.gradient.assign(all.begin() + static_cast<std::ptrdiff_t>(skipped), all.end());
  for (std::size_t i = 0; i < skipped; ++i) CHECK(all[i] == kUntouched);
  return out;
}

inline Case case_of(std::int64_t rows, std::int64_t classes, cuda::RowShape shape = {0, 0, 0, 0}) {
  Case c{};
  c.rows = rows;
  c.classes = classes;
  c.shape = shape;
  return c;
}

// The shapes that a row can have: short ones, a block, a cluster, several stretches.
inline void with_shapes(Case c, const std::function<void(const Case&)>& visit) {
  c.rows = 9;
  c.classes = 200;
  c.shape = {0, 0, 0, 0};
  visit(c);
  c.classes = 777;
  visit(c);
  c.rows = 3;
  c.classes = 2051;
  c.shape = {1, 1, 2, 32};
  visit(c);
  c.shape = {2, 2, 4, 8};
  visit(c);
  c.rows = 2;
  c.classes = 9001;
  c.shape = {2, 1, 2, 32};
  visit(c);
}

// Checks all that has come of a call, in test_cross_entropy.cpp.
void compare(const Case& c, const Input& in, const Output& out);
// In test_cross_entropy_rows.cpp.
void test_targets();
void test_rounds(int orders);
void test_gradient_elsewhere();
// In test_cross_entropy_faults.cpp.
void test_faults(int orders);
void test_missing(int orders);

}  // namespace loss_case
