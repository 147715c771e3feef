// Finds accesses of two threads to the same byte of shared or device memory, one of them a write,
// with no barrier between them that both take part in. Shuffles and votes are none: a device lets a
// warp's lanes wait for each other there, but promises nothing about what they wrote before.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>

#include "block.h"

namespace emulator {

enum class AccessKind : unsigned char { none, read, write, atomic };

// One launch. Whatever came before it, and in the same memory in blocks that have ended, is past.
class Races {
 public:
  void begin_cluster() { shared_.clear(); }
  // An error's text, or an empty one; `place` is where in the kernel's code.
  std::string at_access(Cluster& cluster, const Thread& thread, const void* address,
                        std::size_t bytes, AccessKind kind, const void* place);

 private:
  struct Access {
    AccessKind kind = AccessKind::none;
    unsigned block, thread;
    Passed passed;
    const void* place;
  };
  // The last access of the thread that came last, and of another one before it.
  struct LastTwo {
    Access last, other;
  };
  struct Byte {
    LastTwo writes, reads;
  };
  static constexpr std::uintptr_t kLine = 64;
  using Lines = std::unordered_map<std::uintptr_t, std::array<Byte, kLine>>;

  static bool ordered(const Cluster& cluster, const Access& before, const Access& now);
  static const Access* conflict(const Cluster& cluster, const Byte& byte, const Access& now);
  static void record(Byte& byte, const Access& now);
  static std::string describe(const Access& before, const Access& now);
  bool in_device_memory(std::uintptr_t address);

  Lines shared_, device_;
  std::uintptr_t allocation_ = 0, allocation_end_ = 0;  // the last one found
};

}  // namespace emulator
