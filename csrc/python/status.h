// What calls on a CUDA device leave behind while the host goes on. Everything here holds the GIL.
//
// A call that does not wait gives the device a slot of pinned memory for its status. Whoever wants
// the numbers waits for the stream and reads the slot. A fault that nobody asks about is thrown by
// the next call that waits for that stream, or for the whole device, anyway.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <new>

#include "flatstep/types.h"
#include "python/unlocked.h"

namespace flatstep::python {

// One slot, which goes back to those that are free; pinned memory is slow to get.
class StatusSlot {
 public:
  static constexpr std::size_t kBytes = 128;

  explicit StatusSlot(const Device& device);
  ~StatusSlot();
  StatusSlot(const StatusSlot&) = delete;
  StatusSlot& operator=(const StatusSlot&) = delete;

  // The status to be written, at first as if nothing had happened.
  template <class Status>
  Status* begin() {
    static_assert(sizeof(Status) <= kBytes && alignof(Status) <= 64, "a slot holds any status");
    return new (memory_) Status();
  }
  template <class Status>
  const Status& as() const {
    return *static_cast<const Status*>(memory_);
  }

  const Device& device() const { return device_; }
  // By a graph, which writes to it again whenever it is launched. Such a slot is never reused.
  bool captured() const { return captured_; }

 private:
  Device device_;
  bool captured_;
  void* memory_;
};

// Keeps the slot until its stream has come that far, and then lets `check` throw what its fault is.
// To be called once the work is in the stream.
void watch(const std::shared_ptr<StatusSlot>& slot, std::function<void()> check);

// Of the last call that is watched.
std::uint64_t last_watched();

// Calls the checks of the stream's calls up to `last`, or of all streams of the device, and forgets
// those that are fine. Throws the first fault, and forgets that too.
void throw_first_fault(const Device& device, std::uint64_t last, bool whole_device);

// Calls `wait`, which waits for the stream or for the whole device, without the GIL.
template <class Wait>
void waiting(const Device device, Wait wait, bool whole_device = false) {
  const std::uint64_t last = last_watched();
  {
    const Unlocked unlocked;
    wait();
  }
  if (device.type == DeviceType::cuda) throw_first_fault(device, last, whole_device);
}

// Until the slot is written.
void wait_for(const StatusSlot& slot);

struct StatusCounts {
  std::size_t made, free, watched;
};
StatusCounts status_counts();

}  // namespace flatstep::python
