// Stacks of their own for the emulated threads, and the switch between them and the host's.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  // `body` runs on a stack that is kept from one start to the next; after it, the fiber rests.
  void start(void (*body)());
  // From the host's stack: runs the fiber until it suspends itself or its body returns.
  void resume();
  // On a fiber: back to the host.
  static void suspend();
  bool finished() const { return !unfinished_; }
  // Whether the address lies on the stack of the fiber that runs.
  static bool on_stack(const void* address);

 private:
  static void enter();

  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  char* stack_ = nullptr;
  std::size_t colour_ = 0;
  void (*body_)() = nullptr;
  bool unfinished_ = false;
};

}  // namespace emulator
