// Memory for arrays.
#pragma once

#include <cstddef>

namespace flatstep::cpu {

// Aligned to cache lines; throws std::bad_alloc. From 2 MB on it comes in huge pages where the
// system has them: a page fault for each 4 KB costs as much as a pass over the memory, and matrices
// with long rows need more pages than the processor keeps the addresses of.
void* allocate(std::size_t bytes);
void release(void* memory);  // null is fine

}  // namespace flatstep::cpu
