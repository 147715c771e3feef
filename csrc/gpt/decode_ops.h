// What generation needs besides the operations of ops.h: one new token of each sequence, against
// the keys and values of those before it. Results depend neither on the number of threads nor on
// the other rows.
#pragma once

#include <cstdint>
#include <functional>

#include "gpt/ops.h"

namespace flatstep {

// The keys and values of one layer: for each head of each sequence the keys [width, capacity] and
// behind them the values [capacity, width]. Keys lie so that the scores of neighbouring positions
// are neighbours.
struct CachedLayer {
  float* data;
  std::int64_t heads, width, capacity;

  std::int64_t head_floats() const { return 2 * width * capacity; }
  float* keys(std::int64_t sequence, std::int64_t head) const {
    return data + (sequence * heads + head) * head_floats();
  }
  float* values(std::int64_t sequence, std::int64_t head) const {
    return keys(sequence, head) + width * capacity;
  }
};

class DecodeOps {
 public:
  virtual ~DecodeOps() = default;

  // body(i) for i in [0, count), side by side.
  virtual void for_each(std::int64_t count,
                        const std::function<void(std::int64_t)>& body) const = 0;

  // Positions for which a cache has to have room, so that `length` of them fit.
  virtual std::int64_t capacity(std::int64_t length) const = 0;

  // Floats of scratch for linear and linear_gelu.
  virtual std::int64_t scratch_floats(std::int64_t rows, std::int64_t from,
                                      std::int64_t to) const = 0;

  // out[rows, to] = x[rows, from] weight[from, to] + bias (+ residual). The weight is read once.
  // residual may be null, or out.
  virtual void linear(const float* x, std::int64_t rows, std::int64_t from, const float* weight,
                      const float* bias, std::int64_t to, const float* residual, float* out,
                      float* scratch) const = 0;

  // hidden = x weight + bias, activated = gelu(hidden)
  virtual void linear_gelu(const float* x, std::int64_t rows, std::int64_t from,
                           const float* weight, const float* bias, std::int64_t to, float* hidden,
                           float* activated, float* scratch) const = 0;

  // logits[rows, vocabulary] = x[rows, width] table[vocabulary, width]^T
  virtual void logits(const float* x, std::int64_t rows, std::int64_t width, const float* table,
                      std::int64_t vocabulary, float* logits) const = 0;

  // Keeps the keys and values of qkv [sequences, count, 3, heads, width] as positions
  // [first, first + count) of the cache's sequences from `sequence` on.
  virtual void remember(const float* qkv, std::int64_t sequences, std::int64_t count,
                        const CachedLayer& cache, std::int64_t sequence,
                        std::int64_t first) const = 0;

  // out[sequences, heads, width]: attention of one query of each sequence to `length` cached
  // positions. Query s stands at qkv + s * stride. scores: [sequences, heads, capacity].
  virtual void attend(const float* qkv, std::int64_t stride, std::int64_t sequences,
                      const CachedLayer& cache, std::int64_t sequence, std::int64_t length,
                      float* scores, float* out) const = 0;
};

namespace cpu {
const DecodeOps& decode_ops();
}

}  // namespace flatstep
