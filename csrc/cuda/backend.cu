// The CUDA backend: so far only what the library says about the devices.
#include "core/backend.h"

#include <cuda_runtime.h>

#include <sstream>

#include "flatstep/error.h"

namespace flatstep::cuda {
namespace {

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

}  // namespace

BackendHandle backend(const Device&) {
  int count;
  std::string reason = why_no_device(&count);
  if (reason.empty()) reason = "this version has no CUDA kernels yet";
  throw RuntimeFailure("device: cuda is not available, " + reason);
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
