#include "planted.h"

#include <cmath>
#include <cstring>

#include "check.h"
#include "cuda/cluster.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "device_array.h"

using namespace flatstep::cuda;

namespace {

__global__ void divergent_barrier() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void exited_before_barrier(int) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}
__global__ void barriers_of_two_branches() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void barrier_beside_exchange() {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}
__global__ void mask_without_caller() { __shfl_xor_sync(0x0000ffffu, 1, 1); }
__global__ void mask_with_ended_lane() {
  if (lane() == 7) return;
  __syncwarp();
}
__global__ void mask_with_lane_that_ends() {
  if (lane() == 31) return;
  __ballot_sync(kAllLanes, 1);
}
__global__ void mask_beyond_block() { __any_sync(kAllLanes, 1); }
__global__ void masks_disagree() { __shfl_sync(lane() < 16 ? kAllLanes : 0xffffff00u, 1, 20); }
__global__ void operations_disagree() {
  if (lane() < 16) {
    __any_sync(kAllLanes, 1);
  } else {
    __all_sync(kAllLanes, 1);
  }
}
__global__ void read_outside_mask() {
  if (lane() < 16) __shfl_sync(0x0000ffffu, 1, 20);
}
__global__ void odd_width() { __shfl_sync(kAllLanes, 1, 0, 12); }
__global__ void too_little_shared() { shared_memory<double>() = 1; }
__global__ void ends_while_read() {
  float& mine = shared_memory<float>();
  mine = 1;
  cluster_sync();
  cluster_read(mine, 1 - cluster_rank());
}
__global__ void rank_beyond_cluster() { cluster_read(shared_memory<float>(), 2); }
__global__ void reads_global_as_shared(const float* x) { cluster_read(*x, 1); }
__global__ void misaligned(const float* x) {
  load_streaming(reinterpret_cast<const float4*>(x + 1));
}

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

}  // namespace

void test_faults() {
  const DeviceArray<float> x(std::size_t{32});
  CHECK_FAILS("thread 0-39 waits at __syncthreads at planted.cu:", divergent_barrier, {2, 64});
  CHECK_FAILS("thread 40-63 has ended", divergent_barrier, {2, 64});
  CHECK_FAILS("thread 32-95 has ended", exited_before_barrier, {1, 96}, 0);
  CHECK_FAILS("other threads of the block at planted.cu:", barriers_of_two_branches, {1, 64});
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
