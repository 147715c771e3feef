#include "cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

namespace flatstep::cpu {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{1} << 21;

}  // namespace

void* allocate(std::size_t bytes) {
  const std::size_t alignment = bytes < kHugePage ? kCacheLine : kHugePage;
  if (bytes > PTRDIFF_MAX) throw std::bad_alloc();
  const std::size_t whole = std::max((bytes + alignment - 1) / alignment, std::size_t{1});
  void* memory = std::aligned_alloc(alignment, whole * alignment);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

void release(void* memory) { std::free(memory); }

}  // namespace flatstep::cpu
