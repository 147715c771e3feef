// csrc/cuda/blas.cpp with a stand-in for cuBLASLt, in the emulator: every layout, type, bias and
// accumulation against a float64 product, what cuBLASLt cannot do, and its errors.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "../check.h"
#include "cuda/blas.h"
#include "cuda/cublas_lt.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "fake_cublas_lt.h"

namespace {

using namespace flatstep;
using namespace flatstep::cuda;

FakeState& fake() {
  static FakeState* state = [] {
    void* library = dlopen(cublas_lt().path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    return reinterpret_cast<FakeStateFunction*>(dlsym(library, "fake_state"))();
  }();
  return *state;
}

// A matrix in device memory, with numbers that 16 bits hold, and its values as float64.
class Matrix {
 public:
  Matrix(DType dtype, std::int64_t rows, std::int64_t columns, std::uint32_t seed,
         std::int64_t padding = 3, std::int64_t offset = 0)
      : dtype_(dtype), stride_(columns + padding), offset_(offset) {
    const std::int64_t size = offset + rows * stride_;
    std::vector<char> bytes(static_cast<std::size_t>(size * size_of(dtype)));
    values_.resize(static_cast<std::size_t>(size));
    for (std::int64_t i = 0; i < size; ++i) {
      seed = seed * 1664525u + 1013904223u;
      const float x = static_cast<float>(static_cast<int>(seed >> 24) - 128) / 64;
      values_[i] = x;
      if (dtype == DType::bf16) {
        reinterpret_cast<bf16_bits*>(bytes.data())[i] = from_float<bf16_bits>(x);
      } else if (dtype == DType::f16) {
        reinterpret_cast<f16_bits*>(bytes.data())[i] = from_float<f16_bits>(x);
      } else {
        reinterpret_cast<float*>(bytes.data())[i] = x;
      }
    }
    check(cudaMalloc(&memory_, std::max<std::size_t>(bytes.size(), 1)), "cudaMalloc");
    check(cudaMemcpy(memory_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() { cudaFree(memory_); }

  void* data() const { return memory_ + offset_ * size_of(dtype_); }
  std::int64_t stride() const { return stride_; }
  DType dtype() const { return dtype_; }
  // As it was made.
  double at(std::int64_t i, std::int64_t j) const { return values_[offset_ + i * stride_ + j]; }
  // As the device has it now, with the padding.
  std::vector<float> read() const {
    std::vector<char> bytes(values_.size() * size_of(dtype_));
    check(cudaMemcpy(bytes.data(), memory_, bytes.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    std::vector<float> to;
    for (std::size_t i = offset_; i < values_.size(); ++i) {
      to.push_back(dtype_ == DType::bf16  ? to_float(reinterpret_cast<bf16_bits*>(bytes.data())[i])
                   : dtype_ == DType::f16 ? to_float(reinterpret_cast<f16_bits*>(bytes.data())[i])
                                          : reinterpret_cast<float*>(bytes.data())[i]);
    }
    return to;
  }

 private:
  DType dtype_;
  std::int64_t stride_, offset_;
  std::vector<double> values_;
  char* memory_ = nullptr;
};

struct Case {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b, accumulate;
  enum { no_bias, aligned_bias, other_bias } bias;
  DType inputs, result;
  std::int64_t offset = 0;  // of all matrices, in elements
};

void run(const Case& c, void* workspace = nullptr, std::size_t workspace_bytes = 0) {
  const Matrix a(c.inputs, c.transpose_a ? c.k : c.m, c.transpose_a ? c.m : c.k, 1, 3, c.offset);
  const Matrix b(c.inputs, c.transpose_b ? c.n : c.k, c.transpose_b ? c.k : c.n, 2, 5, c.offset);
  const Matrix result(c.result, c.m, c.n, 3, 2, c.offset);
  const Matrix bias(DType::f32, 1, c.n, 4, 0, c.bias == Case::other_bias ? 1 : 0);
  Gemm call{c.transpose_a,
            c.transpose_b,
            c.m,
            c.n,
            c.k,
            a.data(),
            a.stride(),
            b.data(),
            b.stride(),
            result.data(),
            result.stride(),
            c.accumulate,
            c.bias == Case::no_bias ? nullptr : static_cast<const float*>(bias.data()),
            c.inputs,
            c.inputs,
            c.result};
  gemm(call, workspace, workspace_bytes, nullptr);
  const std::vector<float> got = result.read();
  // One rounding to the result's type, and another where the bias is added behind the product.
  const double epsilon = c.result == DType::bf16  ? 0x1p-8
                         : c.result == DType::f16 ? 0x1p-11
                                                  : 0x1p-24;
  for (std::int64_t i = 0; i < c.m; ++i) {
    for (std::int64_t j = 0; j < result.stride(); ++j) {
      const double before = result.at(i, j);
      const float value = got[i * result.stride() + j];
      if (j >= c.n) {  // the padding is not written
        CHECK(value == static_cast<float>(before));
        continue;
      }
      double sum = c.accumulate ? before : 0.0;
      for (std::int64_t p = 0; p < c.k; ++p) {
        sum +=
            (c.transpose_a ? a.at(p, i) : a.at(i, p)) * (c.transpose_b ? b.at(j, p) : b.at(p, j));
      }
      double size = std::fabs(sum);
      if (c.bias != Case::no_bias) {
        sum += bias.at(0, j);
        size += std::fabs(bias.at(0, j));
      }
      CHECK(std::fabs(value - sum) <= 2 * epsilon * (size + std::fabs(sum)));
    }
  }
}

const std::pair<DType, DType> kTypes[] = {{DType::f32, DType::f32},
                                          {DType::bf16, DType::f32},
                                          {DType::bf16, DType::bf16},
                                          {DType::f16, DType::f32},
                                          {DType::f16, DType::f16}};

void test_products() {
  for (int flags = 0; flags < 8; ++flags) {
    for (const auto bias : {Case::no_bias, Case::aligned_bias, Case::other_bias}) {
      for (const auto& types : kTypes) {
        for (const std::int64_t offset : {0, 1}) {  // 256 bytes, or one element only
          Case c{1,
                 1,
                 1,
                 (flags & 1) != 0,
                 (flags & 2) != 0,
                 (flags & 4) != 0,
                 bias,
                 types.first,
                 types.second,
                 offset};
          run(c);
          c.m = 5, c.n = 7, c.k = 3;
          run(c);
          c.m = 6, c.n = 1, c.k = 19;
          run(c);
          c.k = 0;  // the bias, and what was there before
          run(c);
        }
      }
    }
  }
  run({2, 2500, 3, false, true, false, Case::other_bias, DType::f32, DType::f32});
  run({0, 5, 3, false, false, false, Case::aligned_bias, DType::f32, DType::f32});
  run({5, 0, 3, false, false, false, Case::aligned_bias, DType::f32, DType::f32});
}

// cuBLASLt adds an aligned float32 bias to a float32 result; the rest is ours.
void test_who_adds_the_bias() {
  const auto added_by_library = [](decltype(Case::bias) bias, DType inputs, DType result) {
    const int before = fake().with_bias;
    run({4, 8, 5, false, false, true, bias, inputs, result});
    return fake().with_bias > before;
  };
  CHECK(added_by_library(Case::aligned_bias, DType::f32, DType::f32));
  CHECK(added_by_library(Case::aligned_bias, DType::bf16, DType::f32));
  CHECK(!added_by_library(Case::other_bias, DType::f32, DType::f32));
  CHECK(!added_by_library(Case::aligned_bias, DType::bf16, DType::bf16));
  fake().refuse_bias = 1;  // shapes that were not seen yet
  run({9, 8, 5, false, false, true, Case::aligned_bias, DType::f32, DType::f32});
  fake().refuse_bias = 0;
}

void test_workspace() {
  char* memory = nullptr;
  check(cudaMalloc(&memory, 4096), "cudaMalloc");
  const Case c{3, 4, 5, false, true, false, Case::no_bias, DType::f32, DType::f32};
  for (const std::size_t skipped : {0, 1, 64}) {  // the library gets what is aligned to 256 bytes
    run(c, memory + skipped, 4096 - skipped);
    run(c, memory + skipped, 100);
  }
  cudaFree(memory);
}

void test_shapes_are_searched_once() {
  const Case c{11, 12, 13, false, true, false, Case::no_bias, DType::f32, DType::f32};
  run(c);
  const int before = fake().searches;
  run(c);
  CHECK(fake().searches == before);
  Case other = c;
  other.offset = 1;  // another alignment
  run(other);
  CHECK(fake().searches == before + 1);
  CHECK(fake().handles == 1);
}

void test_errors() {
  const auto product = [](std::int64_t n) {
    run({3, n, 4, false, false, false, Case::no_bias, DType::f32, DType::f32});
  };
  fake().refuse_all = 1;
  CHECK_THROWS(product(21), RuntimeFailure, "no algorithm for a product of 3 x 4 by 21");
  fake().refuse_all = 0;
  fake().fail_with = kBlasExecutionFailed;
  CHECK_THROWS(product(22), RuntimeFailure, "matrix product: execution failed (status 13, ");
  fake().fail_with = 0;
  product(22);
}

void test_threads() {
  std::vector<std::thread> threads;
  std::vector<std::vector<float>> results(4);
  for (std::vector<float>& result : results) {
    threads.emplace_back([&result] {
      const Matrix a(DType::f32, 6, 7, 1), b(DType::f32, 7, 8, 2), c(DType::f32, 6, 8, 3);
      for (int i = 0; i < 50; ++i) {
        gemm({false, false, 6, 8, 7, a.data(), a.stride(), b.data(), b.stride(), c.data(),
              c.stride(), false, nullptr},
             nullptr, 0, nullptr);
      }
      result = c.read();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& result : results) CHECK(result == results[0]);
}

}  // namespace

int main() {
  test_products();
  test_who_adds_the_bias();
  test_workspace();
  test_shapes_are_searched_once();
  test_errors();
  test_threads();
  CHECK(fake().live == 0);
  std::printf("%d products, %d searches, %d failed\n", fake().products.load(),
              fake().searches.load(), failures);
  return failures == 0 ? 0 : 1;
}
