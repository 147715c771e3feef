// Runs CUDA kernels on the host, for tests only: a kernel compiled as C++ (see cuda_runtime.h), its
// threads as fibers that are switched where they wait for each other. What a GPU would leave
// undefined is an error here: see Failure, and races.h for what no barrier orders. It does not see
// missing fences, nor what the device's compiler does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace emulator {

// Thrown out of a launch, names the kernel's block and thread: a barrier that part of the block
// never reaches, an exchange with a wrong mask, memory of a block that has ended, ...
class Failure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Which of the threads that can go on goes on, and which block (cluster) is next. A kernel whose
// results differ between orders lacks a barrier. The default is FLATSTEP_EMULATOR_ORDER (forward,
// reverse or random:SEED), or forward.
enum class Order { forward, reverse, random };
void set_order(Order order, std::uint64_t seed = 0);
std::string order_name();  // as in FLATSTEP_EMULATOR_ORDER

// Calls visit for forward, reverse and `seeds` random orders, and restores the order. Where races
// are found, which show in any order, forward is enough for 0 seeds.
void for_each_order(int seeds, const std::function<void()>& visit);

// Allocations of device memory and pinned memory that were not freed.
std::size_t live_allocations();
// Allocations fail beyond so many bytes in all.
void set_memory_limit(std::size_t bytes);
// Launches since the program's start.
std::size_t launches();

struct Shape {
  unsigned grid, block;
  std::size_t shared_bytes;
  unsigned cluster;
};

// Runs `thread` for every thread of the grid. Launches of several host threads wait for each other.
void run(const Shape& shape, const std::function<void()>& thread);

// What the device functions in cuda_runtime.h and the device headers call.
struct Site {
  const char* file;
  int line;
};

enum class Exchange { sync, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all };

void* shared_memory(std::size_t bytes);
void block_barrier(Site site);
void cluster_barrier(Site site);
int cluster_rank();
int cluster_size();
const void* cluster_address(const void* mine, std::size_t bytes, int rank, Site site);
// The value of lane `source`, or what the votes make of all values, when every lane of the mask has
// come.
std::uint64_t exchange(Exchange kind, unsigned mask, std::uint64_t value, int source, Site site);
// 16 bytes that arrive in shared memory when the thread waits for them, not before.
void copy_async(void* shared, const void* global);
void wait_for_copies();
// Where other threads may come between in random order: at atomic operations and fences.
void yield();
// In a program with race_hooks.cpp: from then on note_access() finds races, see races.h. `place` is
// in the code that reads or writes.
void watch_races();
void note_access(const void* address, std::size_t bytes, bool is_write, const void* place);
// While it lives, the current thread's accesses are atomic.
struct Atomic {
  Atomic();
  ~Atomic();
};
[[noreturn]] void fail(const std::string& text);

}  // namespace emulator
