// Faults that a sanitizer must find before its silence on the library means anything:
//     planted none|overrun|race
#include <cstdio>
#include <cstring>

__global__ void overrun(int* data, int size) {
  data[threadIdx.x + 1 < size ? threadIdx.x : size + 64] = 1;
}

__global__ void race(int* data, bool wait) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (wait) __syncthreads();
  data[threadIdx.x] = values[63 - threadIdx.x];
}

int main(int count, char** arguments) {
  const char* fault = count > 1 ? arguments[1] : "none";
  int* data = nullptr;
  if (cudaMalloc(&data, 64 * sizeof(int)) != cudaSuccess) return 2;
  if (std::strcmp(fault, "overrun") == 0) overrun<<<1, 64>>>(data, 64);
  race<<<1, 64>>>(data, std::strcmp(fault, "race") != 0);
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("%s: %s\n", fault, cudaGetErrorString(error));
  return error == cudaSuccess ? 0 : 1;
}
