// The operations of generation on the CPU.
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "gpt/cpu_isa.h"
#include "gpt/decode_ops.h"

namespace flatstep::cpu {
namespace {

// A task multiplies with kDepth rows and kColumns columns of a weight: long stretches of memory,
// and enough tasks. Then the partial products are added, kStretch elements a task; one task alone
// is sooner done than handed over.
constexpr std::int64_t kDepth = 64;
constexpr std::int64_t kColumns = 768;
constexpr std::int64_t kStretch = 1024;

constexpr std::int64_t kTokens = 128;  // rows of the token table that one task multiplies with
constexpr std::int64_t kVector = 16;   // floats of the widest vector

class CpuDecodeOps final : public DecodeOps {
 public:
  void for_each(std::int64_t count, const std::function<void(std::int64_t)>& body) const override {
    parallel_for(count, [&](std::int64_t i, int) { body(i); });
  }

  // Whole vectors: the scores behind the last position are computed and left alone.
  std::int64_t capacity(std::int64_t length) const override { return round_up(length); }

  std::int64_t scratch_floats(std::int64_t rows, std::int64_t from,
                              std::int64_t to) const override {
    return blocks(from, kDepth) * rows * to;
  }

  void linear(const float* x, std::int64_t rows, std::int64_t from, const float* weight,
              const float* bias, std::int64_t to, const float* residual, float* out,
              float* scratch) const override {
    multiply(x, rows, from, weight, to, scratch);
    for_each_stretch(rows, to, [&](std::int64_t begin, std::int64_t end) {
      add_partials(scratch, from, rows * to, bias, to, residual, begin, end, out);
    });
  }

  void linear_gelu(const float* x, std::int64_t rows, std::int64_t from, const float* weight,
                   const float* bias, std::int64_t to, float* hidden, float* activated,
                   float* scratch) const override {
    multiply(x, rows, from, weight, to, scratch);
    for_each_stretch(rows, to, [&](std::int64_t begin, std::int64_t end) {
      add_partials(scratch, from, rows * to, bias, to, nullptr, begin, end, hidden);
      gpt_kernels().gelu(hidden + begin, activated + begin, end - begin);
    });
  }

  void logits(const float* x, std::int64_t rows, std::int64_t width, const float* table,
              std::int64_t vocabulary, float* logits) const override {
    const RowProduct product{x, rows, width, width, table, width, logits, vocabulary};
    parallel_ranges(vocabulary, kTokens, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().rows_dot_rows(product, begin, end);
    });
  }

  void remember(const float* qkv, std::int64_t sequences, std::int64_t count,
                const CachedLayer& cache, std::int64_t sequence,
                std::int64_t first) const override {
    const std::int64_t part = cache.heads * cache.width;
    parallel_for(sequences * cache.heads, [&](std::int64_t task, int) {
      const std::int64_t s = task / cache.heads, head = task % cache.heads;
      float* keys = cache.keys(sequence + s, head) + first;
      float* values = cache.values(sequence + s, head) + first * cache.width;
      const float* key = qkv + s * count * 3 * part + part + head * cache.width;
      for (std::int64_t t = 0; t < count; ++t, key += 3 * part) {
        for (std::int64_t i = 0; i < cache.width; ++i) keys[i * cache.capacity + t] = key[i];
        std::copy_n(key + part, cache.width, values + t * cache.width);
      }
    });
  }

  void attend(const float* qkv, std::int64_t stride, std::int64_t sequences,
              const CachedLayer& cache, std::int64_t sequence, std::int64_t length, float* scores,
              float* out) const override {
    const float scale = 1.0f / std::sqrt(static_cast<float>(cache.width));
    parallel_for(sequences * cache.heads, [&](std::int64_t task, int) {
      const std::int64_t s = task / cache.heads, head = task % cache.heads;
      float* row = scores + task * cache.capacity;
      gpt_kernels().rows_times_matrix({qkv + s * stride + head * cache.width, 1, 0, cache.width,
                                       cache.keys(sequence + s, head), cache.capacity, row, 0},
                                      0, round_up(length));
      gpt_kernels().softmax(row, length, scale);
      gpt_kernels().rows_times_matrix({row, 1, 0, length, cache.values(sequence + s, head),
                                       cache.width, out + task * cache.width, 0},
                                      0, cache.width);
    });
  }

 private:
  static std::int64_t blocks(std::int64_t size, std::int64_t block) {
    return (size + block - 1) / block;
  }

  static std::int64_t round_up(std::int64_t length) { return blocks(length, kVector) * kVector; }

  // partials[block, rows, to] = x weight, over each kDepth of the depth.
  static void multiply(const float* x, std::int64_t rows, std::int64_t from, const float* weight,
                       std::int64_t to, float* partials) {
    const std::int64_t across = blocks(to, kColumns);
    parallel_for(blocks(from, kDepth) * across, [&](std::int64_t task, int) {
      const std::int64_t block = task / across, begin = task % across * kColumns;
      const std::int64_t k = block * kDepth;
      gpt_kernels().rows_times_matrix({x + k, rows, from, std::min(kDepth, from - k),
                                       weight + k * to, to, partials + block * rows * to, to},
                                      begin, std::min(to, begin + kColumns));
    });
  }

  // body(begin, end) for stretches of [rows, to] that lie within a row.
  template <class Body>
  static void for_each_stretch(std::int64_t rows, std::int64_t to, const Body& body) {
    const std::int64_t across = blocks(to, kStretch);
    parallel_for(rows * across, [&](std::int64_t task, int) {
      const std::int64_t row = task / across * to, begin = task % across * kStretch;
      body(row + begin, row + std::min(to, begin + kStretch));
    });
  }

  // Elements [begin, end) of one row of [rows, to]: the sum of the partials in order.
  static void add_partials(const float* partials, std::int64_t from, std::int64_t size,
                           const float* bias, std::int64_t to, const float* residual,
                           std::int64_t begin, std::int64_t end, float* out) {
    float sum[kStretch];
    const std::int64_t count = end - begin;
    std::copy_n(partials + begin, count, sum);
    for (std::int64_t block = 1; block < blocks(from, kDepth); ++block) {
      const float* partial = partials + block * size + begin;
      for (std::int64_t i = 0; i < count; ++i) sum[i] += partial[i];
    }
    const float* own_bias = bias + begin % to;
    for (std::int64_t i = 0; i < count; ++i) {
      const float value = sum[i] + own_bias[i];
      out[begin + i] = residual == nullptr ? value : residual[begin + i] + value;
    }
  }
};

}  // namespace

const DecodeOps& decode_ops() {
  static const CpuDecodeOps instance;
  return instance;
}

}  // namespace flatstep::cpu
