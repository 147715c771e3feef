#include <mutex>
#include <set>

#include "host_calls.h"

struct EmulatedStream {
  bool capturing;
};
struct EmulatedEvent {};
struct EmulatedPool {};
struct EmulatedGraph {};

namespace {

using emulator::result, emulator::require;

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

}  // namespace

namespace emulator {

cudaError_t queue(cudaStream_t stream) {
  if (!is_stream(stream)) return result(cudaErrorInvalidResourceHandle);
  // The default stream waits for the others, which a capture does not allow.
  const bool waits = is_default(stream) && stream != cudaStreamPerThread;
  return require(!waits || !anyone_captures(), cudaErrorStreamCaptureUnsupported);
}

cudaError_t at_once() { return require(!anyone_captures(), cudaErrorStreamCaptureUnsupported); }

bool is_pool(cudaMemPool_t pool) { return pools.has(pool); }

}  // namespace emulator

cudaError_t cudaDeviceSynchronize() { return emulator::at_once(); }

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
