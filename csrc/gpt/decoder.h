// The forward pass of generation: new positions of each sequence, against the keys and values of
// those before them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flatstep/gpt.h"
#include "gpt/decode_ops.h"
#include "gpt/ops.h"
#include "gpt/tensors.h"

namespace flatstep {

// Everything between the calls of one generation, and the activations of one pass, in one piece of
// memory that the caller owns.
struct DecoderSpace {
  std::vector<CachedLayer> layers;
  float* logits;        // [batch, V] behind the last position
  std::int64_t* drawn;  // [batch]
  std::int64_t* order;  // [batch, V], for drawing
  double* weights;      // [batch, V]

  std::int64_t* tokens;  // [rows]
  float* stream;         // [rows, C] the residual stream; its place and `projected` take turns
  LayerNormResult norm;
  float* qkv;        // [rows, 3C]
  float* attention;  // [rows, C]
  float* projected;  // [rows, C]
  float* hidden;     // [rows, 4C]
  float* activated;  // [rows, 4C]
  float* log_sum;    // [rows, heads]
  float* scores;     // [sequences, heads, capacity]
  float* scratch;

  std::size_t bytes;  // of all of the above

  // For sequences of which up to `longest` positions are seen. A null base only counts the bytes.
  DecoderSpace(const GptConfig& config, std::int64_t batch, std::int64_t longest, void* base);
};

class Decoder {
 public:
  Decoder(const GptConfig& config, const Layout& layout, const float* params, DecoderSpace& space)
      : config_(config), layout_(layout), params_(params), space_(space) {}

  // space.logits of sequences whose last `context` ids end before ids + length; row b of them
  // begins at ids + b * stride. Fills the cache with these positions.
  void refill(const std::int64_t* ids, std::int64_t stride, std::int64_t batch, std::int64_t length,
              std::int64_t context) const;

  // The same, where the cache holds all but the last position.
  void advance(const std::int64_t* ids, std::int64_t stride, std::int64_t batch,
               std::int64_t length) const;

 private:
  // Rows of the activations, and whether each is the only one of its sequence: those are computed
  // by DecodeOps. That depends on the length alone, never on the batch: neither do a row's bits.
  struct Rows {
    std::int64_t count;
    bool single;
  };

  // space.tokens are positions [first, first + shape.length) of the sequences from `sequence` on.
  void pass(SequenceShape shape, std::int64_t sequence, std::int64_t first) const;
  Rows attention(std::int64_t layer, SequenceShape shape, std::int64_t sequence,
                 std::int64_t first) const;
  void feed_forward(Rows rows, const LayerTensors<const float>& p) const;
  static Gemm product(Rows rows, const float* x, std::int64_t from, const float* weight,
                      const float* bias, std::int64_t to, float* out);
  void linear(Rows rows, const float* x, std::int64_t from, const float* weight, const float* bias,
              std::int64_t to, float* out) const;
  // space.stream += x weight + bias
  void add_linear(Rows rows, const float* x, std::int64_t from, const float* weight,
                  const float* bias) const;

  const GptConfig& config_;
  const Layout& layout_;
  const float* params_;
  DecoderSpace& space_;
  const GptOps& ops_ = cpu::gpt_ops();
  const DecodeOps& decode_ = cpu::decode_ops();
};

}  // namespace flatstep
