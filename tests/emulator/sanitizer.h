// What AddressSanitizer is told; nothing in a build without it.
#pragma once

#include <cstddef>
#include <cstring>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#  define FLATSTEP_EMULATOR_ASAN 1
#elif defined(__has_feature)
#  if __has_feature(address_sanitizer)
#    define FLATSTEP_EMULATOR_ASAN 1
#  endif
#endif

#if defined(FLATSTEP_EMULATOR_ASAN)
#  include <sanitizer/asan_interface.h>
#  include <sanitizer/common_interface_defs.h>
#  define FLATSTEP_NOT_SANITIZED __attribute__((no_sanitize("address")))
#else
#  define FLATSTEP_NOT_SANITIZED
#endif

namespace emulator::sanitizer {

#if defined(FLATSTEP_EMULATOR_ASAN)
constexpr bool kOn = true;
inline void poison(const void* memory, std::size_t bytes) {
  __asan_poison_memory_region(memory, bytes);
}
inline void unpoison(const void* memory, std::size_t bytes) {
  __asan_unpoison_memory_region(memory, bytes);
}
inline void start_switch(void** fake_stack, const void* stack, std::size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}
inline void finish_switch(void* fake_stack, const void** stack, std::size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
}
// File and line of code, for messages.
inline std::string source_of(const void* place) {
  char text[400] = "";
  void* call = static_cast<char*>(const_cast<void*>(place)) - 1;
  __sanitizer_symbolize_pc(call, "%s:%l", text, sizeof text);
  const char* name = std::strrchr(text, '/');
  return name != nullptr ? name + 1 : text;
}
#else
constexpr bool kOn = false;
inline std::string source_of(const void*) { return "an unknown line"; }
inline void poison(const void*, std::size_t) {}
inline void unpoison(const void*, std::size_t) {}
inline void start_switch(void**, const void*, std::size_t) {}
inline void finish_switch(void*, const void**, std::size_t*) {}
#endif

}  // namespace emulator::sanitizer
