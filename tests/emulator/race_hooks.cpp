// What code compiled with -fsanitize=thread calls at each access to memory. It is given to the
// emulator; the sanitizer's own runtime, which knows nothing of fibers, is not linked.
#include <cstddef>
#include <cstdint>

#include "emulator.h"

// Named by their symbols: compilers know these functions, with types of their own.
#define FLATSTEP_HOOK(name, parameters)                 \
  void hook_##name parameters __asm__("__tsan_" #name); \
  void hook_##name parameters

#define FLATSTEP_ACCESS(name, bytes, is_write)                                    \
  FLATSTEP_HOOK(name, (const void* address)) {                                    \
    emulator::note_access(address, bytes, is_write, __builtin_return_address(0)); \
  }
#define FLATSTEP_ACCESSES(bytes)                       \
  FLATSTEP_ACCESS(read##bytes, bytes, false)           \
  FLATSTEP_ACCESS(write##bytes, bytes, true)           \
  FLATSTEP_ACCESS(unaligned_read##bytes, bytes, false) \
  FLATSTEP_ACCESS(unaligned_write##bytes, bytes, true)
FLATSTEP_ACCESSES(1)
FLATSTEP_ACCESSES(2)
FLATSTEP_ACCESSES(4)
FLATSTEP_ACCESSES(8)
FLATSTEP_ACCESSES(16)

FLATSTEP_HOOK(read_range, (const void* address, std::size_t bytes)) {
  emulator::note_access(address, bytes, false, __builtin_return_address(0));
}
FLATSTEP_HOOK(write_range, (const void* address, std::size_t bytes)) {
  emulator::note_access(address, bytes, true, __builtin_return_address(0));
}
// At the program's start.
FLATSTEP_HOOK(init, ()) { emulator::watch_races(); }
FLATSTEP_HOOK(func_entry, (void*)) {}
FLATSTEP_HOOK(func_exit, ()) {}
FLATSTEP_HOOK(vptr_update, (void**, void*)) {}
FLATSTEP_HOOK(vptr_read, (void**)) {}

// Of the host's code around kernels.
unsigned char atomic8_load(const volatile unsigned char* address,
                           int) __asm__("__tsan_atomic8_load");
unsigned char atomic8_load(const volatile unsigned char* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
std::uint64_t atomic64_load(const volatile std::uint64_t* address,
                            int) __asm__("__tsan_atomic64_load");
std::uint64_t atomic64_load(const volatile std::uint64_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
int atomic32_fetch_add(volatile int* address, int value, int) __asm__("__tsan_atomic32_fetch_add");
int atomic32_fetch_add(volatile int* address, int value, int) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
