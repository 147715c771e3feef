// Lists of tensors as kernels see them: cut into the chunks of GradPartials, and so many a launch
// that their addresses are arguments of it. So no table must be copied to the device and kept until
// it has been read, and a captured graph has what it needs.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "flatstep/grad.h"

namespace flatstep::cuda {

constexpr int kChunk = static_cast<int>(GradPartials::kChunk);

// kLists lists of as many tensors of the same sizes. Arguments may take 4 KB in all.
template <int kLists>
struct TensorBatch {
  static constexpr std::size_t kMost = kLists == 1 ? 192 : 128;

  std::int32_t count, chunks;
  std::int64_t first_tensor, first_chunk;  // of the list
  void* data[kLists][kMost];
  std::int64_t sizes[kMost];
  std::int32_t starts[kMost];  // the first chunk of each, counted from first_chunk
};

// A part of one tensor.
struct Chunk {
  std::int32_t tensor;  // in the batch
  std::int32_t size;
  std::int64_t begin;
};

// Tensors without elements have no chunk: they begin where the next one does.
template <int kLists>
__device__ __forceinline__ Chunk chunk_of(const TensorBatch<kLists>& batch, int number) {
  int low = 0, high = batch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (batch.starts[middle] <= number) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const std::int64_t begin = static_cast<std::int64_t>(number - batch.starts[low]) * kChunk;
  const std::int64_t left = batch.sizes[low] - begin;
  return {low, left < kChunk ? static_cast<std::int32_t>(left) : kChunk, begin};
}

// visit(batch) for one batch after the other; a list has a pointer for each tensor of `chunks`.
template <int kLists, class Visit>
void for_each_batch(const void* const* const (&lists)[kLists], const GradPartials& chunks,
                    const Visit& visit) {
  using Batch = TensorBatch<kLists>;
  const std::size_t tensors = chunks.sizes.size();
  for (std::size_t first = 0; first < tensors; first += Batch::kMost) {
    const std::size_t count = first + Batch::kMost < tensors ? Batch::kMost : tensors - first;
    Batch batch{};
    batch.count = static_cast<std::int32_t>(count);
    batch.first_tensor = static_cast<std::int64_t>(first);
    batch.first_chunk = chunks.first_chunk[first];
    for (std::size_t i = 0; i < count; ++i) {
      for (int list = 0; list < kLists; ++list) {
        batch.data[list][i] = const_cast<void*>(lists[list][first + i]);
      }
      batch.sizes[i] = chunks.sizes[first + i];
      batch.starts[i] =
          static_cast<std::int32_t>(chunks.first_chunk[first + i] - batch.first_chunk);
    }
    batch.chunks = static_cast<std::int32_t>(chunks.first_chunk[first + count] - batch.first_chunk);
    if (batch.chunks > 0) visit(batch);
  }
}

}  // namespace flatstep::cuda
