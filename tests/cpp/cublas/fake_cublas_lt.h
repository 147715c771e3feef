// What the stand-in for cuBLASLt tells the test, which finds `fake_state` in the library that was
// loaded.
#pragma once

#include <atomic>

extern "C" {
struct FakeState {
  // Several threads count.
  std::atomic<int> handles, searches, products;  // so far
  std::atomic<int> live;                         // descriptors that were not destroyed
  std::atomic<int> with_bias;                    // products whose bias was added by the library
  // Set by the test:
  int refuse_bias;  // no algorithm with a bias
  int refuse_all;   // no algorithm at all
  int fail_with;    // status of every product
};
using FakeStateFunction = FakeState*();
}
