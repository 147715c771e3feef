// Argument checks shared by the public functions. Messages read "argument: got X, expected Y".
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

#include "flatstep/error.h"
#include "flatstep/types.h"

namespace flatstep {

FLATSTEP_API std::string to_text(double value);
inline std::string to_text(std::int64_t value) { return std::to_string(value); }

[[noreturn]] inline void fail(const std::string& argument, const std::string& got,
                              const std::string& expected) {
  throw InvalidArgument(argument + ": got " + got + ", expected " + expected);
}

template <class T>
void require(bool holds, const char* argument, T got, const char* expected) {
  if (!holds) fail(argument, to_text(got), expected);
}

FLATSTEP_API const char* name_of(DType dtype);

// True when the two stretches of memory share a byte.
inline bool overlap(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(a);
  const auto second = reinterpret_cast<std::uintptr_t>(b);
  return a_bytes > 0 && b_bytes > 0 && first < second + b_bytes && second < first + a_bytes;
}

inline bool aligned(const void* data, DType dtype) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size_of(dtype)) == 0;
}

// Refuses a null (unless empty) or misaligned buffer.
inline void require_buffer(const void* data, std::int64_t size, DType dtype, const char* argument) {
  if (size > 0 && data == nullptr) fail(argument, "a null pointer", "a buffer");
  if (!aligned(data, dtype)) {
    fail(argument, "a misaligned buffer", "alignment to the element size");
  }
}

// The same for element `index` of a list; the text is only made for an error.
inline void require_buffer(const void* data, std::int64_t size, DType dtype, const char* list,
                           std::size_t index) {
  if ((size > 0 && data == nullptr) || !aligned(data, dtype)) {
    require_buffer(data, size, dtype,
                   (std::string(list) + "[" + std::to_string(index) + "]").c_str());
  }
}

inline void require_workspace(const void* workspace, std::size_t got, std::size_t needed) {
  if (got < needed || (needed > 0 && workspace == nullptr)) {
    fail("workspace_bytes", std::to_string(got), "at least " + std::to_string(needed));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % 8 != 0) {
    fail("workspace", "a misaligned buffer", "alignment to 8 bytes");
  }
}

}  // namespace flatstep
