#include <cstring>

#include "host_calls.h"
#include "memory.h"

namespace {

using emulator::at_once, emulator::queue;
using emulator::Kind;
using emulator::result;

cudaError_t provide(Kind kind, void** memory, std::size_t bytes) {
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  *memory = emulator::allocate(kind, bytes);
  return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t give_back(Kind kind, void* memory) {
  return memory == nullptr || emulator::release(kind, memory) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  const emulator::InUse target(to), source(from);
  if (!target.holds(to, bytes) || !source.holds(from, bytes)) return cudaErrorInvalidValue;
  const bool to_device = target.kind() == Kind::device, from_device = source.kind() == Kind::device;
  if (kind != cudaMemcpyDefault &&
      (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
       from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice))) {
    return cudaErrorInvalidValue;
  }
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t set(void* to, int value, std::size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  const emulator::InUse target(to);
  if (target.kind() == Kind::unknown || !target.holds(to, bytes)) return cudaErrorInvalidValue;
  std::memset(to, value, bytes);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const cudaError_t error = at_once();
  return result(error != cudaSuccess ? error : provide(Kind::device, memory, bytes));
}
cudaError_t cudaFree(void* memory) {
  const cudaError_t error = at_once();
  return result(error != cudaSuccess ? error : give_back(Kind::device, memory));
}
cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t error = queue(stream);
  return result(error != cudaSuccess ? error : provide(Kind::device, memory, bytes));
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  const cudaError_t error = queue(stream);
  return result(error != cudaSuccess ? error : give_back(Kind::device, memory));
}
cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream) {
  if (!emulator::is_pool(pool)) return result(cudaErrorInvalidValue);
  return cudaMallocAsync(memory, bytes, stream);
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  const cudaError_t error = at_once();
  return result(error != cudaSuccess ? error : provide(Kind::pinned, memory, bytes));
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes, unsigned flags) {
  return cudaHostAlloc(memory, bytes, flags);
}
cudaError_t cudaFreeHost(void* memory) {
  const cudaError_t error = at_once();
  return result(error != cudaSuccess ? error : give_back(Kind::pinned, memory));
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = emulator::memory_limit();
  const std::size_t used = emulator::bytes_in_use();
  *free = *total > used ? *total - used : 0;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t error = at_once();
  return result(error != cudaSuccess ? error : copy(to, from, bytes, kind));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const cudaError_t error = queue(stream);
  return result(error != cudaSuccess ? error : copy(to, from, bytes, kind));
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  const cudaError_t error = at_once();
  return result(error != cudaSuccess ? error : set(to, value, bytes));
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t error = queue(stream);
  return result(error != cudaSuccess ? error : set(to, value, bytes));
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  const Kind kind = emulator::find(address).kind;
  void* place = const_cast<void*>(address);
  if (kind == Kind::device) {
    *attributes = {cudaMemoryTypeDevice, 0, place, nullptr};
  } else if (kind == Kind::pinned) {
    *attributes = {cudaMemoryTypeHost, 0, place, place};
  } else {
    *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, place};
  }
  return cudaSuccess;
}
