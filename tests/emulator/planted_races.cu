#include <cmath>
#include <set>

#include "check.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "device_array.h"
#include "planted.h"

using namespace flatstep::cuda;

namespace {

constexpr int kThreads = 128;
constexpr int kRandomOrders = 20;

struct Shared {
  float x[kThreads];
  double of_warp[kThreads / kWarp];
};

// Each thread reads what another wrote before.
template <bool has_barrier>
__global__ void read_of_neighbour(float* to) {
  auto& shared = shared_memory<Shared>();
  const unsigned other = (threadIdx.x + kWarp) % kThreads;
  shared.x[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (has_barrier) __syncthreads();
  to[threadIdx.x] = shared.x[other];
}

// The same in a warp.
template <bool has_barrier>
__global__ void read_of_lane(float* to) {
  auto& shared = shared_memory<Shared>();
  shared.x[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (has_barrier) __syncwarp();
  to[threadIdx.x] = shared.x[threadIdx.x ^ 1];
}

// Shared memory is used again before all have read it.
template <bool has_barrier>
__global__ void second_use(float* to) {
  auto& shared = shared_memory<Shared>();
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    if (lane() == 0) shared.of_warp[warp()] = threadIdx.x + round;
    __syncthreads();
    for (double each : shared.of_warp) sum += static_cast<float>(each);
    if (has_barrier) __syncthreads();
  }
  to[threadIdx.x] = sum;
}

// A counter that is not increased atomically is right as long as nobody comes between.
template <bool is_atomic>
__global__ void count(float* to) {
  auto& counter = reinterpret_cast<unsigned&>(shared_memory<Shared>());
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  if (is_atomic) {
    atomicAdd(&counter, 1);
  } else {
    const unsigned old = counter;
    __threadfence_block();
    counter = old + 1;
  }
  __syncthreads();
  to[threadIdx.x] = static_cast<float>(counter);
}

__global__ void read_unset(float* to) { to[threadIdx.x] = shared_memory<Shared>().x[threadIdx.x]; }

__global__ void order_of_blocks(unsigned* ticket, unsigned* place) {
  if (threadIdx.x == 0) place[atomicAdd(ticket, 1)] = blockIdx.x;
}

// How many different results the orders give.
int results_of(void (*kernel)(float*)) {
  std::set<std::vector<unsigned>> results;
  emulator::for_each_order(kRandomOrders, [&] {
    const DeviceArray<float> to(std::size_t{kThreads});
    launch(kernel, {1, kThreads, sizeof(Shared)}, nullptr, to.data());
    std::vector<unsigned> bits;
    for (float each : to.read()) bits.push_back(__float_as_uint(each));
    results.insert(bits);
  });
  return static_cast<int>(results.size());
}

}  // namespace

void test_races() {
  CHECK(results_of(read_of_neighbour<true>) == 1);
  CHECK(results_of(read_of_neighbour<false>) > 1);
  CHECK(results_of(read_of_lane<true>) == 1);
  CHECK(results_of(read_of_lane<false>) > 1);
  CHECK(results_of(second_use<true>) == 1);
  CHECK(results_of(second_use<false>) > 1);
  CHECK(results_of(count<true>) == 1);
  CHECK(results_of(count<false>) > 1);

  const DeviceArray<float> unset(std::size_t{kThreads});
  for (float each : unset.read()) CHECK(std::isnan(each));
  launch(read_unset, {1, kThreads, sizeof(Shared)}, nullptr, unset.data());
  for (float each : unset.read()) CHECK(__float_as_uint(each) == 0xffffffffu);

  std::vector<std::vector<unsigned>> orders;
  emulator::for_each_order(1, [&] {
    const DeviceArray<unsigned> ticket(std::vector<unsigned>{0}), place(std::size_t{6});
    launch(order_of_blocks, {6, 32}, nullptr, ticket.data(), place.data());
    orders.push_back(place.read());
  });
  CHECK(orders[0] == (std::vector<unsigned>{0, 1, 2, 3, 4, 5}));
  CHECK(orders[1] == (std::vector<unsigned>{5, 4, 3, 2, 1, 0}));
  CHECK(orders[2] != orders[0] && orders[2] != orders[1]);
}
