// What races.h finds, and what it must not take for a race.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/cluster.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "device_array.h"
#include "emulator.h"

using namespace flatstep::cuda;

namespace {

constexpr int kThreads = 64;

struct alignas(16) Shared {
  float x[kThreads];
  unsigned count;
};

enum class Between { nothing, shuffle, warp_barrier, block_barrier };

// Each thread reads what the one at `distance` has written.
template <Between between, int distance>
__global__ void read_of_other(float* to) {
  Shared& shared = shared_memory<Shared>();
  shared.x[threadIdx.x] = 1;
  float sum = 0;
  if (between == Between::shuffle) sum = warp_sum(1.0f);
  if (between == Between::warp_barrier) __syncwarp();
  if (between == Between::block_barrier) __syncthreads();
  to[blockIdx.x * kThreads + threadIdx.x] = sum + shared.x[threadIdx.x ^ distance];
}

// And writes what that one has read.
template <Between between>
__global__ void write_of_other(float* x) {
  const float mine = x[threadIdx.x];
  if (between == Between::shuffle) warp_sum(mine);
  if (between == Between::warp_barrier) __syncwarp();
  x[threadIdx.x ^ 1] = mine;
}

__global__ void write_one(float* x) { x[0] = 1; }

__global__ void count_threads(unsigned* to, bool plainly) {
  unsigned& count = shared_memory<Shared>().count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  if (!plainly) __syncthreads();
  if (threadIdx.x == 0) *to = count;
}

__global__ void read_copied(const float* from, float* to, bool barrier) {
  Shared& shared = shared_memory<Shared>();
  if (threadIdx.x == 0) copy_async(shared.x, from);
  wait_for_copies();
  if (barrier) __syncthreads();
  to[threadIdx.x] = shared.x[0];
}

__global__ void read_of_neighbour(float* to, bool cluster_wide) {
  Shared& shared = shared_memory<Shared>();
  if (threadIdx.x == 0) shared.x[0] = 1;
  if (cluster_wide) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  to[blockIdx.x * kThreads + threadIdx.x] = cluster_read(shared.x[0], 1 - cluster_rank());
  cluster_sync();
}

template <class... Parameters, class... Arguments>
std::string race_in(void (*kernel)(Parameters...), LaunchShape shape,
                    const Arguments&... arguments) {
  shape.shared_bytes = sizeof(Shared);
  try {
    launch(kernel, shape, nullptr, arguments...);
  } catch (const emulator::Failure& error) {
    return error.what();
  }
  return "none";
}

bool found(const std::string& text, const char* what) {
  if (text.find(what) != std::string::npos) return true;
  std::printf("  no '%s' in '%s'\n", what, text.c_str());
  return false;
}

}  // namespace

int main() {
  const DeviceArray<float> from(std::vector<float>(kThreads, 1.0f)), to(std::size_t{2} * kThreads);
  const DeviceArray<unsigned> count(std::size_t{1});
  float* x = to.data();
  constexpr LaunchShape kOne{1, kThreads}, kTwo{2, kThreads}, kPair{2, kThreads, 0, 2};
  emulator::for_each_order(3, [&] {
    CHECK(found(race_in(read_of_other<Between::nothing, 1>, kOne, x), "race: "));
    CHECK(found(race_in(read_of_other<Between::shuffle, 1>, kOne, x), "race: "));
    CHECK(race_in(read_of_other<Between::warp_barrier, 1>, kTwo, x) == "none");
    CHECK(found(race_in(read_of_other<Between::warp_barrier, 32>, kOne, x), "race: "));
    CHECK(race_in(read_of_other<Between::block_barrier, 32>, kTwo, x) == "none");

    CHECK(found(race_in(write_of_other<Between::nothing>, kOne, x), "race: "));
    CHECK(found(race_in(write_of_other<Between::shuffle>, kOne, x), " at test_races.cpp:"));
    CHECK(race_in(write_of_other<Between::warp_barrier>, kOne, x) == "none");

    CHECK(found(race_in(write_one, kOne, x), "writes at test_races"));
    CHECK(found(race_in(write_one, {2, 1}, x), "what block"));
    CHECK(race_in(write_one, {1, 1}, x) == "none");

    CHECK(race_in(count_threads, kOne, count.data(), false) == "none");
    CHECK(found(race_in(count_threads, kOne, count.data(), true), "atomically"));

    const float* source = from.data();
    CHECK(race_in(read_copied, kOne, source, x, true) == "none");
    CHECK(found(race_in(read_copied, kOne, source, x, false), "race: "));

    CHECK(race_in(read_of_neighbour, kPair, x, true) == "none");
    CHECK(found(race_in(read_of_neighbour, kPair, x, false), "race: "));
  });
  return report();
}
