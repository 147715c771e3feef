// The emulator catches what a GPU leaves undefined, shown by kernels with a fault each, and runs
// the demonstration kernels rightly in every order.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "cuda/cluster.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "demo.h"

namespace {

using namespace flatstep::cuda;

constexpr int kRandomOrders = 10;

// A device array that is freed at the end; the host reads it by copying.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    check(cudaMalloc(&data_, size * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) {
    check(cudaMemcpy(data_, from.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> to(size_);
    check(cudaMemcpy(to.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return to;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

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

void test_bf16() {
  const std::vector<std::uint16_t> x(2000, 0x3f81);  // 1 + 2^-7
  const DeviceArray<std::uint16_t> y(x);
  demo::scale_bf16(y.data(), 2000, 3.0f, nullptr);
  for (std::uint16_t each : y.read()) CHECK(each == 0x4042);  // 3 + 3/128, a tie, to even
}

// The faults.

void divergent_barrier() {
  if (threadIdx.x < 40) __syncthreads();
}
void exited_before_barrier(int) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}
void barriers_of_two_branches() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
void barrier_beside_exchange() {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}
void mask_without_caller() { __shfl_xor_sync(0x0000ffffu, 1, 1); }
void mask_with_ended_lane() {
  if (lane() == 7) return;
  __syncwarp();
}
void mask_with_lane_that_ends() {
  if (lane() == 31) return;
  __ballot_sync(kAllLanes, 1);
}
void mask_beyond_block() { __any_sync(kAllLanes, 1); }
void masks_disagree() { __shfl_sync(lane() < 16 ? kAllLanes : 0xffffff00u, 1, 20); }
void operations_disagree() {
  if (lane() < 16) {
    __any_sync(kAllLanes, 1);
  } else {
    __all_sync(kAllLanes, 1);
  }
}
void read_outside_mask() {
  if (lane() < 16) __shfl_sync(0x0000ffffu, 1, 20);
}
void odd_width() { __shfl_sync(kAllLanes, 1, 0, 12); }
void too_little_shared() { shared_memory<double>() = 1; }
void ends_while_read() {
  float& mine = shared_memory<float>();
  mine = 1;
  cluster_sync();
  cluster_read(mine, 1 - cluster_rank());
}
void rank_beyond_cluster() { cluster_read(shared_memory<float>(), 2); }
void reads_global_as_shared(const float* x) { cluster_read(*x, 1); }
void misaligned(const float* x) { load_streaming(reinterpret_cast<const float4*>(x + 1)); }

template <class... Parameters, class... Arguments>
std::string failure_of(void (*kernel)(Parameters...), const LaunchShape& shape,
                       const Arguments&... arguments) {
  try {
    launch(kernel, shape, nullptr, arguments...);
  } catch (const emulator::Failure& error) {
    return error.what();
  }
  return "no failure";
}

#define CHECK_FAILS(text, ...)                                                            \
  do {                                                                                    \
    const std::string message = failure_of(__VA_ARGS__);                                  \
    if (message.find(text) == std::string::npos) {                                        \
      std::printf("%s:%d: no '%s' in '%s'\n", __FILE__, __LINE__, text, message.c_str()); \
      ++failures;                                                                         \
    }                                                                                     \
  } while (false)

void test_faults() {
  const DeviceArray<float> x(std::size_t{32});
  CHECK_FAILS("thread 0-39 waits at __syncthreads at test_emulator.cpp:", divergent_barrier,
              {2, 64});
  CHECK_FAILS("thread 40-63 has ended", divergent_barrier, {2, 64});
  CHECK_FAILS("thread 32-95 has ended", exited_before_barrier, {1, 96}, 0);
  CHECK_FAILS("other threads of the block at test_emulator.cpp:", barriers_of_two_branches,
              {1, 64});
  CHECK_FAILS("thread 3 waits at __syncthreads", barrier_beside_exchange, {1, 32});
  CHECK_FAILS("the mask lacks the calling lane", mask_without_caller, {1, 32});
  CHECK_FAILS(" end", mask_with_ended_lane, {1, 32});
  CHECK_FAILS(" end", mask_with_lane_that_ends, {1, 32});
  CHECK_FAILS("lane 16, which the block does not have", mask_beyond_block, {1, 48});
  CHECK_FAILS("masks disagree", masks_disagree, {1, 32});
  CHECK_FAILS("operations disagree", operations_disagree, {1, 32});
  CHECK_FAILS("reads lane 20, which the mask lacks", read_outside_mask, {1, 32});
  CHECK_FAILS("the width of a shuffle is 12", odd_width, {1, 32});
  CHECK_FAILS("8 bytes is used, the launch has 4", too_little_shared, {1, 32, 4});
  CHECK_FAILS("no cluster_sync after cluster_read", ends_while_read, {2, 32, 4, 2});
  CHECK_FAILS("rank is 2, the cluster has 2 blocks", rank_beyond_cluster, {2, 32, 4, 2});
  CHECK_FAILS("not in shared memory", reads_global_as_shared, {2, 32, 4, 2}, x.data());
  CHECK_FAILS("not aligned to 16 bytes", misaligned, {1, 32}, x.data());
  CHECK_FAILS("block is 2048", divergent_barrier, {1, 2048});
  CHECK_FAILS("grid is 3, expected a multiple", divergent_barrier, {3, 32, 0, 2});
  CHECK_FAILS("shared_bytes is 300000", divergent_barrier, {1, 32, 300000});
}

}  // namespace

int main() {
  emulator::for_each_order(kRandomOrders, [] {
    test_row_sums();
    test_last_block();
    test_cluster_softmax();
    test_exchanges();
    test_bf16();
    test_faults();
  });
  CHECK(emulator::live_allocations() == 0);
  return report();
}
