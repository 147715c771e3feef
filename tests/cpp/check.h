// The C++ tests' only helper: a failed check is printed and remembered.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "cpu/isa.h"
#include "flatstep/error.h"

inline int failures = 0;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                               \
    }                                                                           \
  } while (false)

// The statement must throw Kind with a message that contains `text`.
#define CHECK_THROWS(statement, Kind, text)                                               \
  do {                                                                                    \
    bool thrown = false;                                                                  \
    try {                                                                                 \
      statement;                                                                          \
    } catch (const Kind& error) {                                                         \
      thrown = std::string(error.what()).find(text) != std::string::npos;                 \
      if (!thrown) std::printf("%s:%d: message: %s\n", __FILE__, __LINE__, error.what()); \
    }                                                                                     \
    if (!thrown) {                                                                        \
      std::printf("%s:%d: no %s with '%s'\n", __FILE__, __LINE__, #Kind, text);           \
      ++failures;                                                                         \
    }                                                                                     \
  } while (false)

// Exits with 77, which ctest counts as not run, where this processor lacks the tested ISA.
inline void require_isa() {
  try {
    flatstep::cpu::kernels();
  } catch (const flatstep::InvalidArgument& error) {
    std::printf("%s\n", error.what());
    std::exit(77);
  }
}

inline int report() {
  std::printf("%s: %d failed\n", flatstep::cpu::kernels().isa, failures);
  return failures == 0 ? 0 : 1;
}
