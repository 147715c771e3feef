#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "emulator.h"
#include "sanitizer.h"

namespace emulator {
namespace {

// Fresh memory holds what was there before; as floats these bytes are NaN.
constexpr int kPoison = 0xff;
// What cudaMalloc promises.
constexpr std::size_t kAlignment = 256;

struct Registry {
  std::mutex mutex;
  std::map<const char*, Allocation> allocations;
  std::size_t bytes = 0;
  std::size_t limit = std::size_t{8} << 30;
  int users = 0;  // while there are any, device memory may be touched
};

Registry& registry() {
  static auto* the_one = new Registry;  // lives until after the last static object
  return *the_one;
}

std::map<const char*, Allocation>::iterator place_of(Registry& all, const void* address) {
  const auto* place = static_cast<const char*>(address);
  auto next = all.allocations.upper_bound(place);
  if (next == all.allocations.begin()) return all.allocations.end();
  --next;
  return place < next->first + next->second.bytes ? next : all.allocations.end();
}

void hide(const Allocation& each) {
  if (each.kind == Kind::device) sanitizer::poison(each.start, each.bytes);
}
void show(const Allocation& each) {
  if (each.kind == Kind::device) sanitizer::unpoison(each.start, each.bytes);
}

}  // namespace

void* allocate(Kind kind, std::size_t bytes) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  void* memory = nullptr;
  if (bytes > all.limit || all.bytes > all.limit - bytes ||
      posix_memalign(&memory, kAlignment, bytes) != 0) {
    return nullptr;
  }
  std::memset(memory, kPoison, bytes);
  auto* start = static_cast<char*>(memory);
  const Allocation allocation{kind, start, bytes};
  all.allocations[start] = allocation;
  all.bytes += bytes;
  if (all.users == 0) hide(allocation);
  return memory;
}

bool release(Kind kind, void* memory) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.allocations.find(static_cast<char*>(memory));
  if (found == all.allocations.end() || found->second.kind != kind) return false;
  all.bytes -= found->second.bytes;
  show(found->second);
  all.allocations.erase(found);
  std::free(memory);
  return true;
}

Allocation find(const void* address) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = place_of(all, address);
  return found == all.allocations.end() ? Allocation{} : found->second;
}

std::size_t bytes_in_use() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.bytes;
}

std::size_t memory_limit() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.limit;
}

void set_memory_limit(std::size_t bytes) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.limit = bytes;
}

std::size_t live_allocations() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.allocations.size();
}

DeviceMemoryInUse::DeviceMemoryInUse() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.users++ > 0) return;
  for (const auto& each : all.allocations) show(each.second);
}

DeviceMemoryInUse::~DeviceMemoryInUse() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (--all.users > 0) return;
  for (const auto& each : all.allocations) hide(each.second);
}

InUse::InUse(const void* address) : allocation_(find(address)) { show(allocation_); }

InUse::~InUse() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.users == 0 && place_of(all, allocation_.start) != all.allocations.end()) {
    hide(allocation_);
  }
}

bool InUse::holds(const void* address, std::size_t bytes) const {
  return allocation_.kind == Kind::unknown ||
         static_cast<const char*>(address) + bytes <= allocation_.start + allocation_.bytes;
}

}  // namespace emulator
