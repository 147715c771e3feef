#include "block.h"

#include <cstdio>
#include <cstring>

namespace emulator {
namespace {

// Shared memory is not set when a block starts; as floats these bytes are NaN.
constexpr int kPoison = 0xff;
constexpr std::size_t kSharedAlignment = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

const char* const kExchangeNames[] = {"__syncwarp",       "__shfl_sync",     "__shfl_up_sync",
                                      "__shfl_down_sync", "__shfl_xor_sync", "__ballot_sync",
                                      "__any_sync",       "__all_sync"};

std::string mask_text(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

bool same_site(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

unsigned char* new_shared_memory(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  if (posix_memalign(&memory, kSharedAlignment, bytes) != 0) throw std::bad_alloc();
  return static_cast<unsigned char*>(std::memset(memory, kPoison, bytes));
}

unsigned lane_number(const Thread& thread) { return thread.number % kLanes; }

}  // namespace

std::string text_of(Site site) {
  const char* name = std::strrchr(site.file, '/');
  return std::string(name != nullptr ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string name_of(const Thread& thread) {
  return "block " + std::to_string(thread.block->number) + ", thread " +
         std::to_string(thread.number);
}

std::string name_of(const Thread& thread, Exchange kind) {
  return std::string(kExchangeNames[static_cast<int>(kind)]) + "(" + mask_text(thread.mask) +
         ") at " + text_of(thread.site);
}

Cluster::Cluster(const Shape& shape, ReadyThreads& ready)
    : shape_(shape),
      ready_(ready),
      threads_(std::size_t{shape.block} * shape.cluster),
      blocks_(shape.cluster) {}

void Cluster::begin(unsigned first_block) {
  ready_.reset(size());
  waiting_ = ended_ = 0;
  for (unsigned rank = 0; rank < shape_.cluster; ++rank) {
    Block& block = blocks_[rank];
    block.number = first_block + rank;
    block.first = rank * shape_.block;
    block.shared.reset(new_shared_memory(shape_.shared_bytes));
    block.waiting = block.ended = 0;
    block.reader = nullptr;
    for (unsigned number = 0; number < shape_.block; ++number) {
      Thread& thread = threads_[block.first + number];
      thread.block = &block;
      thread.number = number;
      thread.copies.clear();
      thread.passed = {};
      release(thread);
    }
  }
}

void Cluster::release(Thread& thread) {
  thread.state = State::ready;
  ready_.add(index_of(thread));
}

std::string Cluster::at_block_barrier(Thread& thread) {
  Block& block = *thread.block;
  thread.state = State::at_block_barrier;
  if (block.waiting > 0 && !same_site(block.site, thread.site)) {
    return "waits at the barrier at " + text_of(thread.site) + ", other threads of the block at " +
           text_of(block.site);
  }
  block.site = thread.site;
  if (++block.waiting < shape_.block) return "";
  block.waiting = 0;
  for (unsigned number = 0; number < shape_.block; ++number) {
    Thread& each = threads_[block.first + number];
    ++each.passed.of_warp;
    ++each.passed.of_block;
    release(each);
  }
  return "";
}

std::string Cluster::at_cluster_barrier(Thread& thread) {
  thread.state = State::at_cluster_barrier;
  if (++waiting_ < size()) return "";
  waiting_ = 0;
  for (Block& block : blocks_) block.reader = nullptr;
  for (Thread& each : threads_) {
    each.passed = {each.passed.of_warp + 1, each.passed.of_block + 1, each.passed.of_cluster + 1};
    release(each);
  }
  return "";
}

Thread* Cluster::lane_of(const Thread& thread, unsigned lane) {
  const unsigned number = thread.number / kLanes * kLanes + lane;
  return number < shape_.block ? &threads_[thread.block->first + number] : nullptr;
}

// Whether two lanes that wait for each other never come together. A lane may be late for an
// exchange because it first has another one, without those that wait for it.
bool Cluster::contradict(const Thread& a, const Thread& b) const {
  return (a.mask >> lane_number(b) & 1u) != 0 && (b.mask >> lane_number(a) & 1u) != 0 &&
         (a.mask != b.mask || a.kind != b.kind);
}

std::string Cluster::in_exchange(Thread& thread) {
  thread.state = State::in_exchange;
  const unsigned mask = thread.mask;
  unsigned here = 0, wrong = (mask >> lane_number(thread) & 1u) == 0 ? kAllLanes : 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Thread* other = lane_of(thread, lane);
    const unsigned bit = 1u << lane & mask;
    if (other == nullptr || other->state == State::ended) {
      wrong |= bit;
    } else if (other->state == State::in_exchange) {
      if (other->mask == mask && other->kind == thread.kind) {
        here |= bit;
      } else if (contradict(thread, *other)) {
        wrong |= bit;
      }
    }
  }
  if (wrong != 0) return describe_exchange(thread);
  return here == mask ? finish_exchange(thread) : "";
}

// What is wrong with it.
std::string Cluster::describe_exchange(const Thread& thread) {
  const std::string name = name_of(thread, thread.kind) + ": ";
  if ((thread.mask >> lane_number(thread) & 1u) == 0) {
    return name + "the mask lacks the calling lane " + std::to_string(lane_number(thread));
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((thread.mask >> lane & 1u) == 0) continue;
    const Thread* other = lane_of(thread, lane);
    const std::string named = "the mask names lane " + std::to_string(lane);
    if (other == nullptr) return name + named + ", which the block does not have";
    if (other->state == State::ended) return name + named + ", which has ended";
    if (other->state == State::in_exchange && contradict(thread, *other)) {
      return name + (other->mask != thread.mask ? "masks" : "operations") + " disagree, lane " +
             std::to_string(lane) + " waits at " + name_of(*other, other->kind);
    }
  }
  return name + "unknown fault";
}

std::string Cluster::finish_exchange(Thread& thread) {
  const unsigned mask = thread.mask;
  std::uint64_t values[kLanes] = {};
  unsigned votes = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    values[lane] = lane_of(thread, lane)->value;
    votes |= (values[lane] != 0 ? 1u : 0u) << lane;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    Thread& each = *lane_of(thread, lane);
    switch (each.kind) {
      case Exchange::sync:
        if (mask == kAllLanes) ++each.passed.of_warp;  // of a part it counts as none
        break;
      case Exchange::ballot:
        each.value = votes;
        break;
      case Exchange::any:
        each.value = votes != 0;
        break;
      case Exchange::all:
        each.value = votes == mask;
        break;
      default:
        if ((mask >> each.source & 1u) == 0) {
          return name_of(each, each.kind) + ": lane " + std::to_string(lane) + " reads lane " +
                 std::to_string(each.source) + ", which the mask lacks";
        }
        each.value = values[each.source];
    }
    release(each);
  }
  return "";
}

std::string Cluster::at_end(Thread& thread) {
  if (!thread.copies.empty()) return "ends before its copies have arrived";
  thread.state = State::ended;
  ++thread.block->ended;
  ++ended_;
  if (thread.block->reader != nullptr) {
    return "ends although " + name_of(*thread.block->reader) +
           " may still read its block's shared memory: no cluster_sync after cluster_read";
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Thread* other = lane_of(thread, lane);
    if (other != nullptr && other->state == State::in_exchange &&
        (other->mask >> lane_number(thread) & 1u) != 0) {
      return "ends although lane " + std::to_string(lane) + " waits for it at " +
             name_of(*other, other->kind);
    }
  }
  return "";
}

// Runs of threads with the same fate, as "threads 0-31 wait at ..., threads 32-63 have ended".
std::string Cluster::describe_waiting() const {
  const auto fate_of = [](const Thread& thread) -> std::string {
    switch (thread.state) {
      case State::in_exchange:
        return "waits at " + name_of(thread, thread.kind);
      case State::at_block_barrier:
        return "waits at __syncthreads at " + text_of(thread.site);
      case State::at_cluster_barrier:
        return "waits at cluster_sync at " + text_of(thread.site);
      case State::ended:
        return "has ended";
      case State::ready:
        break;
    }
    return "can go on";
  };
  std::string text;
  unsigned runs = 0;
  for (std::size_t first = 0, last; first < threads_.size(); first = last + 1) {
    const Thread& thread = threads_[first];
    const std::string fate = fate_of(thread);
    last = first;
    while (last + 1 < threads_.size() && threads_[last + 1].block == thread.block &&
           fate_of(threads_[last + 1]) == fate) {
      ++last;
    }
    if (++runs > 16) return text + "; ...";
    text += (runs == 1 ? "" : "; ") + name_of(thread);
    if (last > first) text += "-" + std::to_string(threads_[last].number);
    text += " " + fate;
  }
  return text;
}

}  // namespace emulator
