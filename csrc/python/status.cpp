#include "python/status.h"

#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "flatstep/memory.h"

namespace flatstep::python {
namespace {

// Of one device. A capture cannot get pinned memory, so some is kept for it.
constexpr std::size_t kSlotsAtOnce = 256, kKeptFree = 64;
struct Pool {
  std::vector<void*> free;
  std::size_t made = 0;

  void add(const Device& device) {
    auto* memory = static_cast<char*>(allocate_status(kSlotsAtOnce * StatusSlot::kBytes, device));
    for (std::size_t i = 0; i < kSlotsAtOnce; ++i) free.push_back(memory + i * StatusSlot::kBytes);
    made += kSlotsAtOnce;
  }
};

// More than a program leaves unread between two looks at a result; beyond it, a call waits.
constexpr std::size_t kMostWatched = 1024;
struct Watched {
  std::uint64_t number;
  std::shared_ptr<StatusSlot> slot;
  std::function<void()> check;
};

// For the lifetime of the process: the device may write to a slot until the very end.
struct State {
  std::map<int, Pool> pools;  // by the index of the device
  std::deque<Watched> watched;
  std::uint64_t last = 0;
};
State& state() {
  static State* const instance = new State();
  return *instance;
}

}  // namespace

StatusSlot::StatusSlot(const Device& device) : device_(device), captured_(capturing(device)) {
  if (!captured_ && state().watched.size() >= kMostWatched) {
    wait_for(*std::shared_ptr<StatusSlot>(state().watched.front().slot));
  }
  Pool& pool = state().pools[device.index];
  if (pool.free.empty() || (!captured_ && pool.free.size() <= kKeptFree)) pool.add(device);
  memory_ = pool.free.back();
  pool.free.pop_back();
}

StatusSlot::~StatusSlot() {
  if (!captured_) state().pools[device_.index].free.push_back(memory_);
}

void watch(const std::shared_ptr<StatusSlot>& slot, std::function<void()> check) {
  if (slot->captured()) return;
  state().watched.push_back({++state().last, slot, std::move(check)});
}

std::uint64_t last_watched() { return state().last; }

void throw_first_fault(const Device& device, std::uint64_t last, bool whole_device) {
  std::deque<Watched>& watched = state().watched;
  for (auto it = watched.begin(); it != watched.end() && it->number <= last;) {
    const Device& own = it->slot->device();
    if (own.index != device.index || (own.stream != device.stream && !whole_device)) {
      ++it;
      continue;
    }
    const Watched done = std::move(*it);
    it = watched.erase(it);
    done.check();
  }
}

void wait_for(const StatusSlot& slot) {
  // A graph may be launched on any stream.
  waiting(
      slot.device(),
      [&] { slot.captured() ? synchronize_device(slot.device()) : synchronize(slot.device()); },
      slot.captured());
}

StatusCounts status_counts() {
  StatusCounts counts{0, 0, state().watched.size()};
  for (const auto& [index, pool] : state().pools) {
    counts.made += pool.made;
    counts.free += pool.free.size();
  }
  return counts;
}

}  // namespace flatstep::python
