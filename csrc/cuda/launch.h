// Launching kernels from the host, with every error checked.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <tuple>
#include <type_traits>

#include "flatstep/error.h"

namespace flatstep::cuda {

struct LaunchShape {
  unsigned grid = 1;             // blocks
  unsigned block = 128;          // threads
  std::size_t shared_bytes = 0;  // of each block
  unsigned cluster = 1;          // blocks that run together; the grid is a multiple of it
};

// What is to be had without asking.
constexpr std::size_t kSharedBytes = 48 * 1024;
constexpr unsigned kPortableCluster = 8;

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw RuntimeFailure(std::string(what) + ": " + cudaGetErrorString(error) + " (" +
                       cudaGetErrorName(error) + ")");
}

#if !defined(FLATSTEP_CUDA_EMULATED)
inline void launch_kernel(const void* kernel, const LaunchShape& shape, cudaStream_t stream,
                          void** parameters) {
  if (shape.shared_bytes > kSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          "shared memory of a kernel");
  }
  if (shape.cluster > kPortableCluster) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "cluster of a kernel");
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = shape.cluster;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid);
  config.blockDim = dim3(shape.block);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelExC(&config, kernel, parameters), "launch of a kernel");
}
#endif

// Arguments are converted to the kernel's parameters, which travel as bytes. No blocks, no launch.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument for each parameter");
  static_assert((std::is_trivially_copyable<std::decay_t<Parameters>>::value && ...),
                "parameters are copied as bytes");
  static_assert((sizeof(std::decay_t<Parameters>) + ... + 0) <= 4096, "the parameters' space");
  if (shape.grid == 0) return;
  std::tuple<std::decay_t<Parameters>...> values(
      static_cast<std::decay_t<Parameters>>(arguments)...);
#if defined(FLATSTEP_CUDA_EMULATED)
  check(emulator::queue(stream), "launch of a kernel");
  emulator::run({shape.grid, shape.block, shape.shared_bytes, shape.cluster},
                [&] { std::apply(kernel, values); });
#else
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value..., nullptr};
        launch_kernel(reinterpret_cast<const void*>(kernel), shape, stream, pointers);
      },
      values);
#endif
}

}  // namespace flatstep::cuda
