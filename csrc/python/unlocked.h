// Releases the GIL for a scope.
#pragma once

#include <pybind11/pybind11.h>

#if defined(__GLIBCXX__)
#  include <cxxabi.h>
#  include <unistd.h>
#endif

namespace flatstep::python {

// Before Python 3.14, a daemon thread that asks for the GIL while the interpreter exits is ended by
// unwinding its stack, which would run destructors that need the interpreter. It waits here for the
// process to end instead, as in later versions.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() {
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace flatstep::python
