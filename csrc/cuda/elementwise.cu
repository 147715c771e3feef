#include "cuda/elementwise.h"

#include "core/dropout_task.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

unsigned blocks_of(std::int64_t items, std::int64_t of_a_block) {
  return static_cast<unsigned>((items + of_a_block - 1) / of_a_block);
}

// ---- dropout -----------------------------------------------------------------------------------

// A thread takes a counter, which has the words of four indices. four(i, words) for the four
// elements from i on, or one(i, word) for each of those that there are. With kWide, four are
// aligned as one.
template <bool kWide, class Four, class One>
__device__ __forceinline__ void visit_four(const DropoutTask& task, std::int64_t size,
                                           std::int64_t first, const Four& four, const One& one) {
  const std::int64_t thread =
      static_cast<std::int64_t>(blockIdx.x) * kThreads + static_cast<std::int64_t>(threadIdx.x);
  const std::int64_t counter = first / 4 + thread;
  const std::int64_t begin = 4 * counter - first;
  if (begin >= size) return;
  const PhiloxWord4 words = dropout_words(task, static_cast<std::uint64_t>(counter));
  if (kWide && begin >= 0 && begin + 4 <= size) {
    four(begin, words);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const std::int64_t i = begin + k;
    if (i >= 0 && i < size) one(i, words.word[k]);
  }
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const DropoutTask task, const float* x, float* out, std::int64_t size,
                   std::int64_t first) {
  const auto dropped = [&](float value, std::uint32_t word) {
    return word < task.threshold ? 0.0f : value * task.scale;
  };
  visit_four<kWide>(
      task, size, first,
      [&](std::int64_t i, const PhiloxWord4& words) {
        const float4 from = *reinterpret_cast<const float4*>(x + i);
        *reinterpret_cast<float4*>(out + i) =
            make_float4(dropped(from.x, words.word[0]), dropped(from.y, words.word[1]),
                        dropped(from.z, words.word[2]), dropped(from.w, words.word[3]));
      },
      [&](std::int64_t i, std::uint32_t word) { out[i] = dropped(x[i], word); });
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads)
    dropout_mask_kernel(const DropoutTask task, std::uint8_t* out, std::int64_t size,
                        std::int64_t first) {
  const auto kept = [&](std::uint32_t word) -> std::uint8_t {
    return word < task.threshold ? 0 : 1;
  };
  visit_four<kWide>(
      task, size, first,
      [&](std::int64_t i, const PhiloxWord4& words) {
        *reinterpret_cast<uchar4*>(out + i) = make_uchar4(kept(words.word[0]), kept(words.word[1]),
                                                          kept(words.word[2]), kept(words.word[3]));
      },
      [&](std::int64_t i, std::uint32_t word) { out[i] = kept(word); });
}

// Whether the elements of a whole counter lie so that one access takes them.
template <class T>
bool whole_counters_are_aligned(const T* array, std::int64_t first) {
  const auto place =
      reinterpret_cast<std::uintptr_t>(array) - static_cast<std::uintptr_t>(first) * sizeof(T);
  return place % (4 * sizeof(T)) == 0;
}

// The counters that the indices lie in.
std::int64_t counters_of(std::int64_t size, std::int64_t first) {
  return size > 0 ? (first + size - 1) / 4 - first / 4 + 1 : 0;
}

// ---- conversions -------------------------------------------------------------------------------

constexpr int kTile = 4 * kThreads;  // columns of a block

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const From* from, std::int64_t from_stride, To* to, std::int64_t to_stride,
                   std::int64_t columns, std::int64_t tiles) {
  const std::int64_t row = blockIdx.x / tiles;
  const std::int64_t begin = (blockIdx.x - row * tiles) * kTile + threadIdx.x;
  const From* source = from + row * from_stride + begin;
  To* target = to + row * to_stride + begin;
  From x[kTile / kThreads];
#pragma unroll
  for (int k = 0; k < kTile / kThreads; ++k) {
    if (begin + k * kThreads < columns) x[k] = source[k * kThreads];
  }
#pragma unroll
  for (int k = 0; k < kTile / kThreads; ++k) {
    if (begin + k * kThreads < columns) target[k * kThreads] = from_float<To>(to_float(x[k]));
  }
}

template <class From, class To>
void convert_rows(const ConstMatrix& from, void* to, std::int64_t to_stride, cudaStream_t stream) {
  std::int64_t rows = from.rows, columns = from.cols;
  if (from.row_stride == columns && to_stride == columns) {  // one long row
    columns *= rows;
    rows = columns > 0 ? 1 : 0;
  }
  const std::int64_t tiles = (columns + kTile - 1) / kTile;
  launch(convert_kernel<From, To>, {static_cast<unsigned>(rows * tiles), kThreads}, stream,
         static_cast<const From*>(from.data), from.row_stride, static_cast<To*>(to), to_stride,
         columns, tiles);
}

// ---- sums of columns ---------------------------------------------------------------------------

// A block takes 32 columns, a warp 16 rows at a time of a stretch of 128: all warps read one
// stretch while the first adds the rows of the one before, in order.
constexpr int kWarpRows = 16;
constexpr int kStretch = kWarps * kWarpRows;

struct Stretches {
  float rows[2][kStretch][kWarp];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    column_sum_kernel(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                      float alpha, float* out, bool accumulate) {
  auto& shared = shared_memory<Stretches>();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane();
  const bool own = column < columns;
  const int first = warp() * kWarpRows;
  T loaded[kWarpRows];
  const auto load = [&](std::int64_t begin) {
#pragma unroll
    for (int k = 0; k < kWarpRows; ++k) {
      const std::int64_t row = begin + first + k;
      if (own && row < rows) loaded[k] = x[row * stride + column];
    }
  };
  float sum = own && accumulate && warp() == 0 ? out[column] : 0.0f;
  load(0);
  int buffer = 0;
  for (std::int64_t begin = 0; begin < rows; begin += kStretch, buffer ^= 1) {
    const auto count = static_cast<int>(rows - begin < kStretch ? rows - begin : kStretch);
#pragma unroll
    for (int k = 0; k < kWarpRows; ++k) {
      if (own && first + k < count)
        shared.rows[buffer][first + k][lane()] = to_float(loaded[k]) * alpha;
    }
    load(begin + kStretch);
    __syncthreads();
    if (own && warp() == 0) {
#pragma unroll 16
      for (int k = 0; k < count; ++k) sum += shared.rows[buffer][k][lane()];
    }
  }
  if (own && warp() == 0) out[column] = sum;
}

template <class T>
void sum_columns(const ConstMatrix& x, float alpha, float* out, bool accumulate,
                 cudaStream_t stream) {
  launch(column_sum_kernel<T>, {blocks_of(x.cols, kWarp), kThreads, sizeof(Stretches)}, stream,
         static_cast<const T*>(x.data), x.row_stride, x.rows, x.cols, alpha, out, accumulate);
}

}  // namespace

void dropout(const DropoutTask& task, const float* x, float* out, std::int64_t size,
             std::int64_t first, cudaStream_t stream) {
  const bool wide = whole_counters_are_aligned(x, first) && whole_counters_are_aligned(out, first);
  launch(wide ? dropout_kernel<true> : dropout_kernel<false>,
         {blocks_of(counters_of(size, first), kThreads), kThreads}, stream, task, x, out, size,
         first);
}

void dropout_mask(const DropoutTask& task, std::uint8_t* out, std::int64_t size, std::int64_t first,
                  cudaStream_t stream) {
  const bool wide = whole_counters_are_aligned(out, first);
  launch(wide ? dropout_mask_kernel<true> : dropout_mask_kernel<false>,
         {blocks_of(counters_of(size, first), kThreads), kThreads}, stream, task, out, size, first);
}

void convert(const ConstMatrix& from, void* to, DType to_dtype, std::int64_t to_row_stride,
             cudaStream_t stream) {
  const auto rows = to_dtype == DType::bf16     ? convert_rows<float, bf16_bits>
                    : to_dtype == DType::f16    ? convert_rows<float, f16_bits>
                    : from.dtype == DType::bf16 ? convert_rows<bf16_bits, float>
                                                : convert_rows<f16_bits, float>;
  rows(from, to, to_row_stride, stream);
}

void column_sum(const ConstMatrix& x, float alpha, float* out, bool accumulate,
                cudaStream_t stream) {
  const auto sum = x.dtype == DType::f32    ? sum_columns<float>
                   : x.dtype == DType::bf16 ? sum_columns<bf16_bits>
                                            : sum_columns<f16_bits>;
  sum(x, alpha, out, accumulate, stream);
}

}  // namespace flatstep::cuda
