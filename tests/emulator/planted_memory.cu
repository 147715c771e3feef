#include <cstdlib>
#include <vector>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "device_array.h"
#include "planted.h"

using namespace flatstep::cuda;

namespace {

constexpr int kSize = 64;

struct Shared {
  float x[kSize];
};

// The faulty index comes from the host, so that the compiler cannot see it.
__global__ void shared_overrun(int index) { shared_memory<Shared>().x[threadIdx.x + index] = 1; }

__global__ void shared_of_ended_block(float** kept, float* to) {
  if (threadIdx.x == 0 && *kept != nullptr) *to = **kept;
  __syncthreads();
  if (threadIdx.x == 0) *kept = shared_memory<Shared>().x;
}

__global__ void write_at(float* x, int index) { x[index] = 1; }

__global__ void local_overrun(float* x, int index) {
  float mine[4] = {x[0], x[1], x[2], x[3]};
  const float* volatile place = mine;  // the compiler would see it
  x[0] = place[index];
}

__device__ float recursive(const float* x, int depth) {
  volatile float mine[256];
  mine[depth % 256] = x[0];
  return depth == 0 ? 0.0f : recursive(x, depth - 1) + mine[depth % 256];
}
__global__ void stack_overflow(float* x, int depth) { x[1] = recursive(x, depth); }

__global__ void misaligned_load(const float* x, float* to, int offset) {
  *to = reinterpret_cast<const float4*>(x + offset)->x;
}

__global__ void wide_shift(unsigned* x, int distance) { *x = 1u << distance; }

}  // namespace

void run_memory_fault(const std::string& name) {
  const std::vector<float> zeros(kSize);
  const DeviceArray<float> x(zeros), to(zeros);
  if (name == "shared_overrun") {
    launch(shared_overrun, {1, kSize, sizeof(Shared)}, nullptr, 1);
  } else if (name == "shared_of_ended_block") {
    const DeviceArray<float*> kept(std::vector<float*>{nullptr});
    launch(shared_of_ended_block, {2, kSize, sizeof(Shared)}, nullptr, kept.data(), to.data());
  } else if (name == "global_overrun") {
    launch(write_at, {1, 32}, nullptr, x.data(), kSize);
  } else if (name == "global_after_free") {
    float* freed = DeviceArray<float>(zeros).data();
    launch(write_at, {1, 32}, nullptr, freed, 0);
  } else if (name == "local_overrun") {
    launch(local_overrun, {1, 32}, nullptr, x.data(), 4);
  } else if (name == "stack_overflow") {
    launch(stack_overflow, {1, 32}, nullptr, x.data(), 100000);
  } else if (name == "device_memory_on_host") {
    x.data()[0] = 1;
  } else if (name == "misaligned_load") {
    launch(misaligned_load, {1, 32}, nullptr, x.data(), to.data(), 1);
  } else if (name == "wide_shift") {
    launch(wide_shift, {1, 32}, nullptr, reinterpret_cast<unsigned*>(x.data()), 32);
  } else {
    std::printf("no such fault: %s\n", name.c_str());
    std::exit(1);
  }
}
