// Hands out 64-byte aligned stretches of one piece of memory, or only counts them: a function that
// carves a workspace then tells its size as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flatstep {

// Bytes between memory that is written by different threads. Processors fetch what lies up to 2 KB
// behind that which is asked for, and lines that another core writes would go to and fro.
constexpr std::size_t kThreadGap = 4096;

class Arena {
 public:
  // A null base only counts.
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    char* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }

  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace flatstep
