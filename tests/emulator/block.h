// The state of the threads, warps and blocks of a running launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "emulator.h"
#include "ready.h"

namespace emulator {

constexpr unsigned kLanes = 32;

struct Block;

enum class State { ready, in_exchange, at_block_barrier, at_cluster_barrier, ended };

// The barriers that a thread has passed: of its warp, its block and its cluster, a wider one being
// one of the narrower, too.
struct Passed {
  unsigned of_warp = 0, of_block = 0, of_cluster = 0;
};

struct Thread {
  Block* block;
  unsigned number;  // in its block
  State state;
  Site site;  // where it waits
  // In an exchange.
  Exchange kind;
  unsigned mask;
  std::uint64_t value;
  int source;
  std::vector<std::pair<void*, const void*>> copies;  // begun, in order
  Passed passed;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Block {
  unsigned number;  // in the grid
  unsigned first;   // its first thread's number in the cluster
  std::unique_ptr<unsigned char, Free> shared;
  unsigned waiting, ended;  // threads at the block's barrier, and those that are through
  Site site;                // of the barrier at which they wait
  const Thread* reader;     // has read this block's memory since the last barrier of the cluster
};

// All blocks of a cluster; they run together, one cluster after the other.
class Cluster {
 public:
  Cluster(const Shape& shape, ReadyThreads& ready);
  void begin(unsigned first_block);

  Thread& thread(unsigned index) { return threads_[index]; }
  Block& block(unsigned rank) { return blocks_[rank]; }
  unsigned size() const { return static_cast<unsigned>(threads_.size()); }
  unsigned blocks() const { return shape_.cluster; }
  std::size_t shared_bytes() const { return shape_.shared_bytes; }
  unsigned index_of(const Thread& thread) const {
    return static_cast<unsigned>(&thread - threads_.data());
  }

  // The thread has come to such a place; an error's text, or an empty one.
  std::string at_block_barrier(Thread& thread);
  std::string at_cluster_barrier(Thread& thread);
  std::string in_exchange(Thread& thread);
  std::string at_end(Thread& thread);
  // It waits for nothing but its turn.
  void yield(Thread& thread) { release(thread); }

  // Where all threads that have not ended wait.
  std::string describe_waiting() const;
  bool all_ended() const { return ended_ == threads_.size(); }

 private:
  void release(Thread& thread);
  Thread* lane_of(const Thread& thread, unsigned lane);
  bool contradict(const Thread& a, const Thread& b) const;
  std::string describe_exchange(const Thread& thread);
  std::string finish_exchange(Thread& thread);

  Shape shape_;
  ReadyThreads& ready_;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  unsigned waiting_ = 0, ended_ = 0;
};

std::string name_of(const Thread& thread);
std::string text_of(Site site);
std::string name_of(const Thread& waiting, Exchange kind);

}  // namespace emulator
