// The emulator catches what a GPU leaves undefined, shown by kernels with a fault each, and runs
// the demonstration kernels rightly in every order.
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/cluster.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "demo.h"
#include "device_array.h"
#include "planted.h"

namespace {

using namespace flatstep::cuda;

constexpr int kRandomOrders = 10;

std::vector<float> ramp(std::size_t size) {
  std::vector<float> x(size);
  for (std::size_t i = 0; i < size; ++i) x[i] = static_cast<float>(i % 37) * 0.25f - 3.0f;
  return x;
}

void test_row_sums() {
  const int rows = 5, columns = 300;
  const std::vector<float> x = ramp(rows * columns);
  const DeviceArray<float> from(x), to(std::size_t{rows});
  demo::row_sums(from.data(), rows, columns, to.data(), nullptr);
  const std::vector<float> sums = to.read();
  for (int row = 0; row < rows; ++row) {
    double sum = 0;
    for (int column = 0; column < columns; ++column) sum += x[row * columns + column];
    CHECK(sums[row] == static_cast<float>(sum));
  }
}

void test_last_block() {
  const std::vector<float> x = ramp(10000);
  double sum = 0;
  for (float each : x) sum += each;
  const DeviceArray<float> from(x);
  const DeviceArray<double> partial(std::size_t{7}), to(std::size_t{1});
  const DeviceArray<unsigned> ticket(std::vector<unsigned>{0});
  for (int repeat = 0; repeat < 2; ++repeat) {
    demo::sum_by_last_block(from.data(), 10000, 7, partial.data(), ticket.data(), to.data(),
                            nullptr);
    CHECK(to.read()[0] == sum);
    CHECK(ticket.read()[0] == 0);
  }
}

void test_cluster_softmax() {
  const int rows = 3, columns = 1000;
  const std::vector<float> x = ramp(rows * columns);
  const DeviceArray<float> from(x), to(x.size());
  for (unsigned cluster : {1u, 2u, 4u, 16u}) {
    demo::cluster_softmax(from.data(), rows, columns, cluster, to.data(), nullptr);
    const std::vector<float> y = to.read();
    for (int row = 0; row < rows; ++row) {
      double sum = 0;
      for (int column = 0; column < columns; ++column) sum += std::exp(x[row * columns + column]);
      for (int column = 0; column < columns; ++column) {
        const int i = row * columns + column;
        const double expected = std::exp(x[i]) / sum;
        CHECK(std::abs(y[i] - expected) <= 2e-6 * expected);
      }
    }
  }
}

void test_exchanges() {
  std::vector<int> x(32);
  for (int i = 0; i < 32; ++i) x[i] = i;
  const DeviceArray<int> from(x);
  const DeviceArray<long long> to(std::size_t{32 * 12});
  demo::exchanges(from.data(), to.data(), nullptr);
  const std::vector<long long> results = to.read();
  for (int lane = 0; lane < 32; ++lane) {
    const long long* got = results.data() + lane * 12;
    const bool low = lane < 16;
    CHECK(got[0] == 5);
    CHECK(got[1] == (lane < 3 ? lane : lane - 3));
    CHECK(got[2] == (lane % 8 < 4 ? lane + 4 : lane));
    CHECK(got[3] == static_cast<long long>(lane ^ 9) << 32);
    CHECK(got[4] == (lane % 16 == 15 ? lane : lane + 1));
    CHECK(got[5] == lane / 4 * 4 + 3);
    CHECK(got[6] == (low ? 0x0000aaaa : 0xaaaa0000));
    CHECK(got[7] == low);
    CHECK(got[8] == !low);
    CHECK(got[9] == 31);
    CHECK(got[10] == 31 * 16);
    CHECK(got[11] == lane / 2);
  }
}

// A product that lies between two numbers goes to the even one.
void test_scale() {
  const DeviceArray<std::uint16_t> bf16(std::vector<std::uint16_t>(2000, 0x3f81));  // 1 + 2^-7
  demo::scale(bf16.data(), true, 2000, 3.0f, nullptr);
  for (std::uint16_t each : bf16.read()) CHECK(each == 0x4042);                    // 3 + 2^-5
  const DeviceArray<std::uint16_t> f16(std::vector<std::uint16_t>(2000, 0x3c01));  // 1 + 2^-10
  demo::scale(f16.data(), false, 2000, 3.0f, nullptr);
  for (std::uint16_t each : f16.read()) CHECK(each == 0x4202);  // 3 + 2^-8
}

// Blocks and clusters of every size; what each thread gets tells whether all were there.
__global__ void count_threads(unsigned* counts) {
  struct Shared {
    unsigned of_warp[32];
    unsigned of_block;
  };
  auto& shared = shared_memory<Shared>();
  const unsigned threads = block_sum(1u, shared.of_warp);
  if (threadIdx.x + 1 == blockDim.x) shared.of_block = threads;
  cluster_sync();
  unsigned all = 0;
  for (int rank = 0; rank < cluster_size(); ++rank) all += cluster_read(shared.of_block, rank);
  cluster_sync();
  counts[blockIdx.x * blockDim.x + threadIdx.x] = all;
}

void test_sizes() {
  for (unsigned block : {32u, 64u, 96u, 512u, 1024u}) {
    for (unsigned cluster : {1u, 3u, 16u}) {
      if (block * cluster > 16 * 512) continue;
      const DeviceArray<unsigned> counts(std::size_t{2 * cluster * block});
      launch(count_threads, {2 * cluster, block, 33 * sizeof(unsigned), cluster}, nullptr,
             counts.data());
      for (unsigned each : counts.read()) CHECK(each == block * cluster);
    }
  }
}

// Several threads of the host launch at once.
void test_host_threads() {
  const DeviceArray<float> x(ramp(4 * 300)), sums(std::size_t{4});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < 20; ++repeat) {
        demo::row_sums(x.data() + 300 * i, 1, 300, sums.data() + i, cudaStreamPerThread);
      }
    });
  }
  for (std::thread& each : threads) each.join();
  const DeviceArray<float> expected(std::size_t{4});
  demo::row_sums(x.data(), 4, 300, expected.data(), nullptr);
  CHECK(sums.read() == expected.read());
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc > 1) {
    run_memory_fault(argv[1]);
    return 0;
  }
  emulator::for_each_order(kRandomOrders, [] {
    test_row_sums();
    test_last_block();
    test_cluster_softmax();
    test_exchanges();
    test_scale();
    test_faults();
  });
  for (const auto order : {emulator::Order::forward, emulator::Order::random}) {
    emulator::set_order(order, 3);
    test_sizes();
    test_host_threads();
  }
  test_races();
  CHECK(emulator::live_allocations() == 0);
  return report();
} catch (const std::exception& error) {
  std::printf("%s\n", error.what());
  return 1;
}
