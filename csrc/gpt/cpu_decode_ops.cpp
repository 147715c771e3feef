// The operations of generation on the CPU.
#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "gpt/cpu_isa.h"
#include "gpt/decode_ops.h"

namespace flatstep::cpu {
namespace {

constexpr std::int64_t kColumns = 64;  // of a weight that one task multiplies with
constexpr std::int64_t kTokens = 128;  // rows of the token table that one task multiplies with
constexpr std::int64_t kVector = 16;   // floats of the widest vector

class CpuDecodeOps final : public DecodeOps {
 public:
  void for_each(std::int64_t count, const std::function<void(std::int64_t)>& body) const override {
    parallel_for(count, [&](std::int64_t i, int) { body(i); });
  }

  // Whole vectors: the scores behind the last position are computed and left alone.
  std::int64_t capacity(std::int64_t length) const override { return round_up(length); }

  void linear(const float* x, std::int64_t rows, std::int64_t from, const float* weight,
              const float* bias, std::int64_t to, const float* residual,
              float* out) const override {
    const RowProduct product{x, rows, from, from, weight, to, out, to, bias, residual, to};
    parallel_ranges(to, kColumns, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().rows_times_matrix(product, begin, end);
    });
  }

  void linear_gelu(const float* x, std::int64_t rows, std::int64_t from, const float* weight,
                   const float* bias, std::int64_t to, float* hidden,
                   float* activated) const override {
    const RowProduct product{x, rows, from, from, weight, to, hidden, to, bias};
    parallel_ranges(to, kColumns, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().rows_times_matrix(product, begin, end);
      for (std::int64_t r = 0; r < rows; ++r) {
        gpt_kernels().gelu(hidden + r * to + begin, activated + r * to + begin, end - begin);
      }
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
  static std::int64_t round_up(std::int64_t length) {
    return (length + kVector - 1) / kVector * kVector;
  }
};

}  // namespace

const DecodeOps& decode_ops() {
  static const CpuDecodeOps instance;
  return instance;
}

}  // namespace flatstep::cpu
