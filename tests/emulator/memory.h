// Device memory and pinned memory, which are the host's. Under AddressSanitizer each allocation
// ends where it should, and the host may not touch device memory while no kernel runs.
#pragma once

#include <cstddef>

namespace emulator {

constexpr std::size_t kSharedBytesOfBlock = 227 * 1024;

enum class Kind { unknown, device, pinned };

struct Allocation {
  Kind kind = Kind::unknown;
  char* start = nullptr;
  std::size_t bytes = 0;
};

// Null beyond the memory limit.
void* allocate(Kind kind, std::size_t bytes);
// False where the pointer is no allocation of that kind.
bool release(Kind kind, void* memory);
// The allocation that an address lies in, or one of unknown kind.
Allocation find(const void* address);
std::size_t bytes_in_use();
std::size_t memory_limit();

// Kernels may touch device memory while such an object lives.
class DeviceMemoryInUse {
 public:
  DeviceMemoryInUse();
  ~DeviceMemoryInUse();
  DeviceMemoryInUse(const DeviceMemoryInUse&) = delete;
  DeviceMemoryInUse& operator=(const DeviceMemoryInUse&) = delete;
};

// The same for a copy: only the allocation that the address lies in.
class InUse {
 public:
  explicit InUse(const void* address);
  ~InUse();
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;
  // Whether so many bytes from the address on lie in one allocation, or in none that is known.
  bool holds(const void* address, std::size_t bytes) const;
  Kind kind() const { return allocation_.kind; }

 private:
  Allocation allocation_;
};

}  // namespace emulator
