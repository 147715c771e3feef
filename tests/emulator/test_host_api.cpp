// The fake runtime refuses what the real one refuses, and launch.h reports it.
#include <cstring>

#include "check.h"
#include "cuda/launch.h"
#include "demo.h"
#include "device_array.h"

namespace {

using flatstep::RuntimeFailure;
using flatstep::cuda::check;
using flatstep::cuda::launch;

void test_device() {
  int value = 0;
  CHECK(cudaGetDeviceCount(&value) == cudaSuccess && value == 1);
  CHECK(cudaSetDevice(0) == cudaSuccess);
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaSuccess);
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0) == cudaSuccess);
  CHECK(std::strcmp(properties.name, "emulated device") == 0 && properties.major == 9);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess);
  CHECK(value == properties.multiProcessorCount);
}

void test_check() {
  CHECK_THROWS(check(cudaSetDevice(2), "cudaSetDevice"), RuntimeFailure,
               "cudaSetDevice: invalid device ordinal (cudaErrorInvalidDevice)");
  CHECK(cudaGetLastError() == cudaSuccess);  // not reported twice
}

void test_memory() {
  void* memory = nullptr;
  void* pinned = nullptr;
  int on_stack = 0;
  CHECK(cudaMalloc(&memory, 100) == cudaSuccess && emulator::live_allocations() == 1);
  CHECK(cudaHostAlloc(&pinned, 100, cudaHostAllocDefault) == cudaSuccess);
  cudaPointerAttributes attributes;
  CHECK(cudaPointerGetAttributes(&attributes, static_cast<char*>(memory) + 99) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeDevice && attributes.device == 0);
  CHECK(cudaPointerGetAttributes(&attributes, pinned) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeHost);
  CHECK(cudaPointerGetAttributes(&attributes, &on_stack) == cudaSuccess);
  CHECK(attributes.type == cudaMemoryTypeUnregistered);

  CHECK(cudaMemset(memory, 7, 100) == cudaSuccess);
  CHECK(cudaMemset(memory, 7, 101) == cudaErrorInvalidValue);
  CHECK(cudaMemset(&on_stack, 7, 4) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(pinned, memory, 100, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(static_cast<char*>(pinned)[99] == 7);
  CHECK(cudaMemcpy(pinned, memory, 100, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(pinned, memory, 101, cudaMemcpyDefault) == cudaErrorInvalidValue);

  CHECK(cudaFree(pinned) == cudaErrorInvalidValue);
  CHECK(cudaFree(static_cast<char*>(memory) + 8) == cudaErrorInvalidValue);
  CHECK(cudaFree(memory) == cudaSuccess);
  CHECK(cudaFree(memory) == cudaErrorInvalidValue);
  CHECK(cudaFree(nullptr) == cudaSuccess);
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
  CHECK(emulator::live_allocations() == 0);
  cudaGetLastError();
}

void test_memory_limit() {
  emulator::set_memory_limit(1000);
  void* memory = nullptr;
  std::size_t free = 0, total = 0;
  CHECK(cudaMallocAsync(&memory, 900, nullptr) == cudaSuccess);
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess && free == 100 && total == 1000);
  CHECK_THROWS(DeviceArray<char>(std::size_t{101}), RuntimeFailure,
               "cudaMalloc: out of memory (cudaErrorMemoryAllocation)");
  CHECK(cudaFreeAsync(memory, nullptr) == cudaSuccess);
  emulator::set_memory_limit(std::size_t{8} << 30);
}

void test_pools() {
  cudaMemPoolProps properties{};
  cudaMemPool_t pool = nullptr;
  CHECK(cudaMemPoolCreate(&pool, &properties) == cudaErrorInvalidValue);
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, 0};
  CHECK(cudaMemPoolCreate(&pool, &properties) == cudaSuccess);
  std::uint64_t threshold = UINT64_MAX;
  CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold) == cudaSuccess);
  float* memory = nullptr;
  CHECK(cudaMallocFromPoolAsync(&memory, 64, pool, cudaStreamPerThread) == cudaSuccess);
  CHECK(cudaFreeAsync(memory, cudaStreamPerThread) == cudaSuccess);
  CHECK(cudaMemPoolDestroy(pool) == cudaSuccess);
  CHECK(cudaMallocFromPoolAsync(&memory, 64, pool, nullptr) == cudaErrorInvalidValue);
  CHECK(cudaDeviceGetDefaultMemPool(&pool, 0) == cudaSuccess && pool != nullptr);
  cudaGetLastError();
}

void test_streams() {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
  CHECK(cudaEventRecord(event, stream) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(cudaStreamPerThread, event) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(cudaEventDestroy(event) == cudaSuccess);
  CHECK(cudaEventRecord(event, stream) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
  cudaGetLastError();
  const DeviceArray<float> x(std::vector<float>(4));
  CHECK_THROWS(demo::row_sums(x.data(), 1, 4, x.data(), stream), RuntimeFailure,
               "launch of a kernel: invalid resource handle");
}

// While a stream captures, nobody waits and nobody allocates outside of streams.
void test_capture() {
  const DeviceArray<float> x(std::vector<float>(4));
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaStreamCaptureStatus status;
  void* memory = nullptr;
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) ==
        cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamCreate(&stream) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess);
  CHECK(status == cudaStreamCaptureStatusActive);
  CHECK(cudaMalloc(&memory, 4) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaDeviceSynchronize() == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaMemsetAsync(x.data(), 0, 4, nullptr) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaMemsetAsync(x.data(), 0, 4, stream) == cudaSuccess);
  demo::row_sums(x.data(), 1, 4, x.data(), stream);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnmatched);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  cudaGetLastError();
}

void add(double* to, double value, std::int64_t index) { to[index] += value; }

// Arguments become the kernel's types; no blocks, no launch.
void test_launch() {
  const DeviceArray<double> x(std::vector<double>{1, 2});
  const std::size_t before = emulator::launches();
  launch(add, {1, 32}, nullptr, x.data(), 3, 1u);
  launch(add, {0, 32}, nullptr, nullptr, 3, 1u);
  CHECK(emulator::launches() == before + 1);
  CHECK(x.read()[1] == 2 + 32 * 3);
}

}  // namespace

int main() {
  test_device();
  test_check();
  test_memory();
  test_memory_limit();
  test_pools();
  test_streams();
  test_capture();
  test_launch();
  CHECK(emulator::live_allocations() == 0);
  return report();
}
