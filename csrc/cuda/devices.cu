#include "cuda/devices.h"

#include <array>
#include <mutex>
#include <sstream>
#include <string>

#include "core/backend.h"

namespace flatstep::cuda {
namespace {

constexpr int kMostDevices = 64;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Empty when there is a device.
std::string why_no_device(int* count) {
  *count = 0;
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaSuccess && *count > 0) return "";
  cudaGetLastError();
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "no NVIDIA driver was found (libcuda.so.1)";
  if (error == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver knows CUDA " + version_text(driver) + ", this build needs " +
           version_text(runtime) + " or a newer driver";
  }
  if (error == cudaSuccess) return "the NVIDIA driver shows no device";
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

// What is found out, or made, at the first use of a device.
struct DeviceState {
  std::once_flag once;
  int largest_cluster = 1;
  int shared_bytes = 0;
  cudaMemPool_t pool = nullptr;
};

void prepare(DeviceState& state, int index) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&state.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
        "cudaDeviceGetAttribute");
  // 16 blocks fit where a group of multiprocessors is large; everywhere else 8 do.
  state.largest_cluster = major < 9 ? 1 : major == 9 || major == 10 ? 16 : 8;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = index;
  check(cudaMemPoolCreate(&state.pool, &properties), "cudaMemPoolCreate");
  auto threshold = ~std::uint64_t{0};
  check(cudaMemPoolSetAttribute(state.pool, cudaMemPoolAttrReleaseThreshold, &threshold),
        "cudaMemPoolSetAttribute");
}

DeviceState& state_of(int index) {
  static std::array<DeviceState, kMostDevices> states;  // not destroyed before the driver
  DeviceState& state = states.at(static_cast<std::size_t>(index));
  std::call_once(state.once, [&] { prepare(state, index); });
  return state;
}

}  // namespace

void require_device(const Device& device) {
  int count;
  const std::string reason = why_no_device(&count);
  if (!reason.empty()) throw RuntimeFailure("device: cuda is not available, " + reason);
  if (device.index < 0 || device.index >= std::min(count, kMostDevices)) {
    throw RuntimeFailure("device: got cuda:" + std::to_string(device.index) + ", expected one of " +
                         std::to_string(count) + " devices");
  }
}

int largest_cluster(int index) { return state_of(index).largest_cluster; }
int shared_bytes_of_block(int index) { return state_of(index).shared_bytes; }

void* allocate(std::size_t bytes, int index, cudaStream_t stream) {
  void* data = nullptr;
  // 0 bytes have an address as well.
  check(cudaMallocFromPoolAsync(&data, bytes > 0 ? bytes : 1, state_of(index).pool, stream),
        "memory of the device");
  return data;
}

void describe(BuildInfo& info) {
  info.cuda_built = true;
  std::istringstream archs(FLATSTEP_CUDA_ARCHS);
  for (std::string arch; archs >> arch;) info.cuda_archs.push_back(arch);
  int count;
  info.cuda_why_not = why_no_device(&count);
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
      info.cuda_devices.push_back(properties.name);
    }
  }
}

}  // namespace flatstep::cuda
