#include "races.h"

#include "memory.h"
#include "sanitizer.h"

namespace emulator {
namespace {

std::string name_of(unsigned block, unsigned thread) {
  return "block " + std::to_string(block) + ", thread " + std::to_string(thread);
}

bool in_shared_memory(Cluster& cluster, std::uintptr_t address) {
  for (unsigned rank = 0; rank < cluster.blocks(); ++rank) {
    const auto start = reinterpret_cast<std::uintptr_t>(cluster.block(rank).shared.get());
    if (start != 0 && address >= start && address < start + cluster.shared_bytes()) return true;
  }
  return false;
}

}  // namespace

bool Races::ordered(const Cluster& cluster, const Access& before, const Access& now) {
  if (before.block == now.block) {
    if (before.thread == now.thread) return true;
    return before.thread / kLanes == now.thread / kLanes
               ? before.passed.of_warp < now.passed.of_warp
               : before.passed.of_block < now.passed.of_block;
  }
  return before.block / cluster.blocks() == now.block / cluster.blocks() &&
         before.passed.of_cluster < now.passed.of_cluster;
}

const Races::Access* Races::conflict(const Cluster& cluster, const Byte& byte, const Access& now) {
  const auto collides = [&](const Access& before) {
    if (before.kind == AccessKind::none) return false;
    if (before.kind == now.kind && now.kind != AccessKind::write) return false;
    return !ordered(cluster, before, now);
  };
  for (const LastTwo* two : {&byte.writes, &byte.reads}) {
    if (collides(two->last)) return &two->last;
    if (collides(two->other)) return &two->other;
  }
  return nullptr;
}

void Races::record(Byte& byte, const Access& now) {
  LastTwo& two = now.kind == AccessKind::read ? byte.reads : byte.writes;
  if (two.last.block != now.block || two.last.thread != now.thread) two.other = two.last;
  two.last = now;
}

std::string Races::describe(const Access& before, const Access& now) {
  const auto what = [](AccessKind kind) {
    return kind == AccessKind::read    ? "reads"
           : kind == AccessKind::write ? "writes"
                                       : "changes atomically";
  };
  return std::string("race: ") + what(now.kind) + " at " + sanitizer::source_of(now.place) +
         " what " + name_of(before.block, before.thread) + " " + what(before.kind) + " at " +
         sanitizer::source_of(before.place) + ", no barrier of both lies between";
}

bool Races::in_device_memory(std::uintptr_t address) {
  if (address >= allocation_ && address < allocation_end_) return true;
  const Allocation found = find(reinterpret_cast<const void*>(address));
  if (found.kind != Kind::device) return false;
  allocation_ = reinterpret_cast<std::uintptr_t>(found.start);
  allocation_end_ = allocation_ + found.bytes;
  return true;
}

std::string Races::at_access(Cluster& cluster, const Thread& thread, const void* address,
                             std::size_t bytes, AccessKind kind, const void* place) {
  const auto first = reinterpret_cast<std::uintptr_t>(address);
  const bool is_shared = in_shared_memory(cluster, first);
  if (!is_shared && !in_device_memory(first)) return "";
  Lines& lines = is_shared ? shared_ : device_;
  const Access now{kind, thread.block->number, thread.number, thread.passed, place};
  std::array<Byte, kLine>* line = nullptr;
  for (std::uintptr_t each = first; each < first + bytes; ++each) {
    if (line == nullptr || each % kLine == 0) line = &lines[each / kLine];
    Byte& byte = (*line)[each % kLine];
    if (const Access* before = conflict(cluster, byte, now)) return describe(*before, now);
    record(byte, now);
  }
  return "";
}

}  // namespace emulator
