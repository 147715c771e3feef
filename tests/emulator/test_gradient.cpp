// Kernels over gradients, dropout, conversions and sums of columns: the CPU's bits, whatever the
// order of the threads.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <list>

#include "check.h"
#include "core/backend.h"
#include "core/dropout_task.h"
#include "cuda/elementwise.h"
#include "cuda/gradient.h"
#include "emulator.h"
#include "random_arrays.h"

namespace {

using namespace flatstep;

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

// Tensors of these sizes on both sides.
struct TwinList {
  std::list<Twin> twins;
  std::vector<void*> host, device;
  std::vector<const void*> inputs;  // host

  TwinList(const std::vector<std::int64_t>& sizes, DType dtype, float scale = 1.0f) {
    for (const std::int64_t size : sizes) {
      twins.emplace_back(bytes_of(normals(size, scale), dtype));
      host.push_back(twins.back().host());
      device.push_back(twins.back().device());
    }
    inputs.assign(host.begin(), host.end());
  }
  bool same() const {
    bool all = true;
    for (const Twin& twin : twins) all &= twin.same();
    return all;
  }
};

std::vector<std::int64_t> many_sizes() {
  std::vector<std::int64_t> sizes(450, 3);
  sizes[0] = sizes[191] = sizes[192] = sizes[449] = 0;
  sizes[7] = 4097;
  sizes[300] = 9000;
  return sizes;
}
const std::vector<std::int64_t> kSizes = {1, 31, 4096, 0, 8192 + 33, 515, 0, 4095};

template <class T>
std::vector<T> read(const T* device, std::int64_t size) {
  std::vector<T> values(static_cast<std::size_t>(size));
  cuda::check(cudaMemcpy(values.data(), device, values.size() * sizeof(T), cudaMemcpyDeviceToHost),
              "copy");
  return values;
}

void test_partials(const std::vector<std::int64_t>& sizes) {
  for (const DType dtype : kFloats) {
    TwinList grads(sizes, dtype, 1e3f);
    GradPartials wanted(sizes), got(sizes);
    const double norm = backend_of({})->grad_norm(grads.inputs, dtype, wanted);
    const cuda::PartialSums sums = cuda::make_room(got, nullptr);
    cuda::fill_partials(grads.device.data(), dtype, got, sums, nullptr);
    CHECK(read(sums.sums, got.chunks()) == wanted.sums);
    CHECK(cuda::norm_of(sums, got.chunks(), nullptr) == norm);
    CHECK(cuda::sums_of(got).sums == sums.sums && got.sums.empty());
    float largest = 0;
    for (const std::uint32_t bits : read(sums.largest, got.chunks())) {
      float value;
      std::memcpy(&value, &bits, sizeof value);
      largest = std::fmax(largest, value);
    }
    const auto beyond = [&](double limit) {
      return cuda::first_beyond(grads.device.data(), dtype, got, limit, nullptr);
    };
    CHECK(beyond(largest).nonfinite_segment == -1);
    for (const double limit : {2000.0, 1000.0, 0.999 * static_cast<double>(largest)}) {
      const GradNorm found = beyond(limit);
      const GradNorm by_cpu = backend_of({})->first_beyond(grads.inputs, dtype, wanted, limit);
      CHECK(found.nonfinite_segment == by_cpu.nonfinite_segment);
      CHECK(found.nonfinite_index == by_cpu.nonfinite_index && found.nonfinite_index >= 0);
    }
  }
}

// NaN is above infinity, which is above all numbers.
void test_partials_of_what_is_not_finite() {
  const GradPartials chunks({5000});
  for (const float value : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> x = normals(5000);
    x[4999] = value;
    x[4998] = -INFINITY;
    Twin grad(bytes_of(x, DType::f32));
    GradPartials partials({5000});
    const cuda::PartialSums sums = cuda::make_room(partials, nullptr);
    const void* list[] = {grad.device()};
    cuda::fill_partials(list, DType::f32, chunks, sums, nullptr);
    CHECK(std::isfinite(read(sums.sums, 2)[0]) && !std::isfinite(read(sums.sums, 2)[1]));
    const std::uint32_t bits = read(sums.largest, 2)[1];
    CHECK(std::isnan(value) ? bits > 0x7f800000u : bits == 0x7f800000u);
    CHECK(cuda::first_beyond(list, DType::f32, chunks, 3e38, nullptr).nonfinite_index == 4998);
  }
}

// Made-up sums: more groups than threads.
void test_order_of_the_norm() {
  for (const std::int64_t chunks : {std::int64_t{0}, std::int64_t{256}, std::int64_t{70001}}) {
    GradPartials partials({chunks * GradPartials::kChunk});
    for (double& sum : partials.sums) {
      sum = std::exp2(std::uniform_real_distribution<double>(-30, 30)(random_engine()));
    }
    const DeviceArray<double> sums(partials.sums);
    CHECK(cuda::norm_of({sums.data(), nullptr}, chunks, nullptr) == partials.norm());
  }
}

void test_scale() {
  for (const DType dtype : kFloats) {
    for (const double factor : {0.3, -1e-25, 1e39}) {
      TwinList grads(kSizes, dtype);
      const GradPartials chunks(kSizes);
      backend_of({})->scale(grads.host, dtype, chunks, factor);
      cuda::scale(grads.device.data(), dtype, chunks, factor, nullptr);
      CHECK(grads.same());
    }
  }
}

void test_accumulate(const std::vector<std::int64_t>& sizes) {
  for (const DType dtype : kFloats) {
    for (const bool overwrite : {false, true}) {
      TwinList totals(sizes, DType::f32), src(sizes, dtype);
      AccumulateOptions options;
      options.src_dtype = dtype;
      options.scale = 0.3;
      options.overwrite = overwrite;
      GradPartials wanted(sizes), got(sizes);
      backend_of({})->accumulate(totals.host, src.inputs, options, wanted);
      const cuda::PartialSums sums = cuda::make_room(got, nullptr);
      cuda::accumulate(totals.device.data(), src.device.data(), options, got, sums, nullptr);
      CHECK(totals.same() && src.same());
      CHECK(read(sums.sums, got.chunks()) == wanted.sums);
    }
  }
}

void test_float64_is_refused() {
  const GradPartials chunks({1});
  const void* list[] = {nullptr};
  void* totals[] = {nullptr};
  CHECK_THROWS(cuda::fill_partials(list, DType::f64, chunks, {}, nullptr), InvalidArgument,
               "grads: got float64 on CUDA");
  AccumulateOptions options;
  options.dtype = DType::f64;
  CHECK_THROWS(cuda::accumulate(totals, list, options, chunks, {}, nullptr), InvalidArgument,
               "totals: got float64 on CUDA");
  CHECK_THROWS(cuda::sums_of(chunks), InvalidArgument, "partials");
}

void test_dropout() {
  const DropoutKey key{0x123456789abcdefu, (std::int64_t{1} << 40) + 5, 3};
  for (const std::int64_t size : {0, 1, 3, 4, 5, 1021, 2500}) {
    for (const std::int64_t first :
         {std::int64_t{0}, std::int64_t{1}, (std::int64_t{1} << 35) + 6}) {
      for (const std::size_t offset : {0, 4, 8}) {
        const double p = first == 1 ? 0.0 : 0.3;
        const DropoutTask task = dropout_task(p, key);
        Twin x(bytes_of(normals(size), DType::f32), offset), mask(Bytes(size), offset / 4);
        Twin out(Bytes(4 * static_cast<std::size_t>(size)), offset);
        const auto float_of = [](void* data) { return static_cast<float*>(data); };
        const auto byte_of = [](void* data) { return static_cast<std::uint8_t*>(data); };
        backend_of({})->dropout(float_of(x.host()), float_of(out.host()), size, p, key, first);
        cuda::dropout(task, float_of(x.device()), float_of(out.device()), size, first, nullptr);
        backend_of({})->dropout_mask(byte_of(mask.host()), size, p, key, first);
        cuda::dropout_mask(task, byte_of(mask.device()), size, first, nullptr);
        CHECK(out.same() && mask.same());
        backend_of({})->dropout(float_of(x.host()), float_of(x.host()), size, p, key, first);
        cuda::dropout(task, float_of(x.device()), float_of(x.device()), size, first, nullptr);
        CHECK(x.same());
      }
    }
  }
}

void test_convert() {
  struct Shape {
    std::int64_t rows, columns, from_stride, to_stride;
  };
  const Shape shapes[] = {{1, 5000, 5000, 5000}, {3, 1025, 1030, 1025}, {7, 300, 300, 300},
                          {40, 3, 5, 4},         {0, 7, 7, 7},          {4, 0, 3, 3}};
  const float special[] = {0.0f,  -0.0f, INFINITY, -INFINITY, 65519.9f,    65520.0f,
                           6e-8f, 2e-8f, 1e-40f,   3.4e38f,   1.00390625f, 1.01171875f};
  for (const Shape& shape : shapes) {
    for (const DType half : {DType::bf16, DType::f16}) {
      const auto elements = [&](std::int64_t stride) { return shape.rows * stride; };
      std::vector<float> values = normals(elements(shape.from_stride), 100.0f);
      for (std::size_t i = 0; i < values.size() && i < std::size(special); ++i) {
        values[i] = special[i];
      }
      for (const bool narrow : {true, false}) {
        const DType from = narrow ? DType::f32 : half, to = narrow ? half : DType::f32;
        Twin source(bytes_of(values, from));
        Twin target(Bytes(static_cast<std::size_t>(elements(shape.to_stride) * size_of(to)), 55));
        const auto matrix = [&](void* data) {
          return ConstMatrix{data, from, shape.rows, shape.columns, shape.from_stride};
        };
        backend_of({})->convert(matrix(source.host()), target.host(), to, shape.to_stride);
        cuda::convert(matrix(source.device()), target.device(), to, shape.to_stride, nullptr);
        CHECK(target.same());
      }
    }
  }
}

// Of arrays that end where the memory does.
void test_convert_reads_no_more() {
  for (const std::int64_t columns : {1, 255, 1025}) {
    const DeviceArray<float> source(normals(columns));
    const DeviceArray<std::uint16_t> target(static_cast<std::size_t>(columns));
    cuda::convert({source.data(), DType::f32, 1, columns, columns}, target.data(), DType::bf16,
                  columns, nullptr);
    const Bytes wanted = bytes_of(source.read(), DType::bf16);
    CHECK(std::memcmp(target.read().data(), wanted.data(), wanted.size()) == 0);
  }
}

void test_column_sum() {
  for (const std::int64_t rows : {0, 1, 127, 128, 300, 515}) {
    for (const std::int64_t columns : {1, 32, 75}) {
      for (const DType dtype : kFloats) {
        const std::int64_t stride = columns + 3;
        Twin x(bytes_of(normals(rows * stride), dtype)),
            sums(bytes_of(normals(columns), DType::f32));
        std::vector<float> numbers(static_cast<std::size_t>(rows * stride));
        if (dtype == DType::f32) {
          numbers = numbers_of<float>(x.on_host());
        } else if (rows > 0) {
          convert(x.host(), dtype, numbers.data(), DType::f32, rows * stride);
        }
        for (const bool accumulate : {true, false}) {
          backend_of({})->column_sum({numbers.data(), DType::f32, rows, columns, stride}, 1.0f,
                                     static_cast<float*>(sums.host()), accumulate);
          cuda::column_sum({x.device(), dtype, rows, columns, stride}, 1.0f,
                           static_cast<float*>(sums.device()), accumulate, nullptr);
          CHECK(sums.same());
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int orders = argc > 1 ? std::atoi(argv[1]) : 50;  // random ones
  require_isa();
  if (std::string(cpu::kernels().isa) == "x86_64") return 77;  // it fuses no products and sums
  test_order_of_the_norm();
  test_float64_is_refused();
  test_convert_reads_no_more();
  emulator::for_each_order(std::min(orders, 5), [] {
    test_partials(many_sizes());
    test_accumulate(many_sizes());
    test_column_sum();
    test_dropout();
    test_convert();
    test_scale();
  });
  emulator::for_each_order(orders, [] {
    test_partials(kSizes);
    test_partials_of_what_is_not_finite();
    test_accumulate(kSizes);
  });
  CHECK(emulator::live_allocations() == 0);
  return report();
}
