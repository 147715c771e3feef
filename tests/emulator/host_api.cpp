#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>

#include "cuda_runtime.h"
#include "memory.h"

struct EmulatedStream {
  bool capturing;
};
struct EmulatedEvent {};
struct EmulatedPool {};
struct EmulatedGraph {};

namespace {

using emulator::Kind;

constexpr int kVersion = 13000;
constexpr std::size_t kSharedBytes = 48 * 1024;
constexpr std::size_t kSharedBytesOfMultiprocessor = 228 * 1024;

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
cudaError_t require(bool holds, cudaError_t error) { return result(holds ? cudaSuccess : error); }

// The handles that were created and not destroyed.
template <class T>
class Handles {
 public:
  T* create() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return *handles_.insert(new T()).first;
  }
  bool destroy(T* handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (handles_.erase(handle) == 0) return false;
    delete handle;
    return true;
  }
  bool has(T* handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return handles_.count(handle) != 0;
  }
  template <class Predicate>
  bool any(Predicate predicate) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (T* each : handles_) {
      if (predicate(*each)) return true;
    }
    return false;
  }

 private:
  std::mutex mutex_;
  std::set<T*> handles_;
};

Handles<EmulatedStream> streams;
Handles<EmulatedEvent> events;
Handles<EmulatedPool> pools;
Handles<EmulatedGraph> graphs;

bool is_default(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}
bool is_stream(cudaStream_t stream) { return is_default(stream) || streams.has(stream); }
bool captures(cudaStream_t stream) { return !is_default(stream) && stream->capturing; }
bool anyone_captures() {
  return streams.any([](const EmulatedStream& each) { return each.capturing; });
}

// Of a call that puts work into a stream.
cudaError_t queue(cudaStream_t stream) {
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  // The default stream waits for the others, which a capture does not allow.
  return is_default(stream) && stream != cudaStreamPerThread && anyone_captures()
             ? cudaErrorStreamCaptureUnsupported
             : cudaSuccess;
}
// Of a call that waits for the device or is not for streams.
cudaError_t at_once() {
  return anyone_captures() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

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

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define FLATSTEP_NAME(value) \
  case value:                \
    return #value;
    FLATSTEP_NAME(cudaSuccess)
    FLATSTEP_NAME(cudaErrorInvalidValue)
    FLATSTEP_NAME(cudaErrorMemoryAllocation)
    FLATSTEP_NAME(cudaErrorInvalidDevicePointer)
    FLATSTEP_NAME(cudaErrorInvalidMemcpyDirection)
    FLATSTEP_NAME(cudaErrorInsufficientDriver)
    FLATSTEP_NAME(cudaErrorNoDevice)
    FLATSTEP_NAME(cudaErrorInvalidDevice)
    FLATSTEP_NAME(cudaErrorInvalidResourceHandle)
    FLATSTEP_NAME(cudaErrorNotReady)
    FLATSTEP_NAME(cudaErrorNotSupported)
    FLATSTEP_NAME(cudaErrorStreamCaptureUnsupported)
    FLATSTEP_NAME(cudaErrorStreamCaptureUnmatched)
#undef FLATSTEP_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return require(device == 0, cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device");
  properties->totalGlobalMem = emulator::memory_limit();
  properties->sharedMemPerBlock = kSharedBytes;
  properties->sharedMemPerBlockOptin = emulator::kSharedBytesOfBlock;
  properties->sharedMemPerMultiprocessor = kSharedBytesOfMultiprocessor;
  properties->reservedSharedMemPerBlock = 1024;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->major = 9;
  properties->minor = 0;
  properties->multiProcessorCount = 4;
  properties->l2CacheSize = 1 << 20;
  properties->memoryPoolsSupported = properties->unifiedAddressing = 1;
  properties->concurrentKernels = 1;
  properties->memoryBusWidth = 512;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(properties.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = properties.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = properties.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrClusterLaunch:
      *value = 1;
      break;
    default:
      return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return result(at_once()); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = streams.create();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return require(streams.destroy(stream), cudaErrorInvalidResourceHandle);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!is_stream(stream)) return result(cudaErrorInvalidResourceHandle);
  return require(!captures(stream), cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return require(is_stream(stream) && events.has(event), cudaErrorInvalidResourceHandle);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  if (!is_stream(stream)) return result(cudaErrorInvalidResourceHandle);
  *status = captures(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (is_default(stream) || !is_stream(stream) || captures(stream)) {
    return result(cudaErrorStreamCaptureUnsupported);
  }
  stream->capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!is_stream(stream) || !captures(stream)) return result(cudaErrorStreamCaptureUnmatched);
  stream->capturing = false;
  *graph = graphs.create();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return require(graphs.destroy(graph), cudaErrorInvalidValue);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = events.create();
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return require(events.destroy(event), cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return require(events.has(event) && is_stream(stream), cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return require(events.has(event), cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

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
  if (!pools.has(pool)) return result(cudaErrorInvalidValue);
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

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  static EmulatedPool* the_one = pools.create();
  *pool = the_one;
  return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  if (properties->allocType != cudaMemAllocationTypePinned ||
      properties->location.type != cudaMemLocationTypeDevice || properties->location.id != 0) {
    return result(cudaErrorInvalidValue);
  }
  *pool = pools.create();
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  return require(pools.destroy(pool), cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
  return require(pools.has(pool) && value != nullptr, cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, std::size_t) {
  return require(pools.has(pool), cudaErrorInvalidValue);
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
