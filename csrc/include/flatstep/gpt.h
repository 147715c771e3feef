// GPT-2 (Radford et al. 2019): pre-LN blocks, learned positions, tanh-GELU, tied head, biases.
// Forward and backward over one flat parameter buffer and one flat gradient buffer. Link with
// flatstep::gpt.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flatstep/export.h"
#include "flatstep/grad.h"
#include "flatstep/layout.h"
#include "flatstep/types.h"

namespace flatstep {

struct GptConfig {
  std::int64_t vocab_size = 256;
  std::int64_t block_size = 256;  // the longest sequence
  std::int64_t n_layer = 6;
  std::int64_t n_head = 6;
  std::int64_t n_embd = 384;
  double dropout = 0.0;  // on embeddings, attention weights, attention output and feed-forward
};

// Token ids [batch, length], i32 or i64, contiguous.
struct TokenBatch {
  const void* data = nullptr;
  DType dtype = DType::i64;
  std::int64_t batch = 0;
  std::int64_t length = 0;
};

// Seconds of forward_backward by part; a pass adds to them. Of halves of a batch that run side by
// side, the mean counts. What is left of `pass` is the copy of the tokens and the like.
struct GptProfile {
  double pass = 0.0;        // all of the call
  double gemm = 0.0;        // the layers' matrix products, with GELU, residual and dropout on them
  double attention = 0.0;   // scores, softmax and weighted sum, both ways
  double head = 0.0;        // the products with the token table, and the loss
  double layer_norm = 0.0;  // both ways
  double embedding = 0.0;   // both ways
  double sums = 0.0;        // attention's input bias, and the sums of squares for the norm
};

struct TrainOptions {
  double label_smoothing = 0.0;
  std::uint64_t seed = 0;     // of the dropout masks
  std::int64_t step = 0;      // a new number for every forward pass in training
  bool accumulate = false;    // add to the gradients instead of overwriting them
  double loss_divisor = 0.0;  // > 0: divides the summed loss, instead of the valid targets
  std::int64_t ignore_index = -100;
  // Takes the sums of squares of the gradients as they stand after this pass, for
  // Optimizer::step with the model's layout; or null.
  GradPartials* partials = nullptr;
  // Keeps only each layer's input and computes the rest of its forward pass again in the backward
  // pass, with the same bits, in up to a fifth more time: a sixteenth of each layer's activations
  // and one layer's whole, a quarter in all with 6 layers, a ninth with 24.
  bool recompute = false;
  // Takes the time of each part of the pass; or null, and no clock is looked at.
  GptProfile* profile = nullptr;
};

// Bytes that a training pass works with. The caller owns all of it.
struct GptMemory {
  std::size_t params = 0;
  std::size_t grads = 0;
  std::size_t workspace = 0;    // the sum of what follows
  std::size_t tokens = 0;       // checked copies of the ids
  std::size_t activations = 0;  // what the forward pass leaves for the backward pass
  std::size_t buffers = 0;  // logits, gradients of activations and of half a small batch, scratch
};

// A token is drawn from softmax(logits / temperature) over the top_k most likely tokens, of these
// over the fewest whose probabilities add up to top_p (nucleus sampling, Holtzman et al. 2020,
// arXiv:1904.09751), one at least. Of equal logits the smaller id counts as more likely.
struct SampleOptions {
  double temperature = 1.0;  // 0 takes the most likely token
  std::int64_t top_k = 0;    // 0: all tokens
  double top_p = 1.0;        // 1: all of those
  std::uint64_t seed = 0;    // row b of a batch uses seed + b
};

// Sequences that grow together. Row b's ids begin at ids + b * capacity.
struct Generation {
  std::int64_t* ids = nullptr;
  std::int64_t batch = 0;
  std::int64_t capacity = 0;  // ids that a row has room for
  std::int64_t length = 0;    // ids that a row holds
  std::int64_t cached = 0;    // positions of which the workspace holds the keys and values
};

class FLATSTEP_API Gpt {
 public:
  // Throws InvalidArgument naming the member of the configuration that is out of range.
  explicit Gpt(const GptConfig& config);

  const GptConfig& config() const { return config_; }
  // Tensor names and orientation of Hugging Face GPT-2; 1-D tensors have weight decay 0.
  const Layout& layout() const { return layout_; }

  // N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)), biases 0, gains 1.
  void initialize(float* params, std::uint64_t seed) const;

  // Bytes of workspace (64-byte aligned, owned by the caller) for such a batch.
  std::size_t training_workspace_bytes(std::int64_t batch, std::int64_t length,
                                       bool recompute = false) const;
  std::size_t inference_workspace_bytes(std::int64_t batch, std::int64_t length) const;

  // What training takes with such a batch, without the optimizer's state.
  GptMemory memory(std::int64_t batch, std::int64_t length, bool recompute = false) const;

  // Mean cross-entropy with dropout, and its gradient. params, grads: layout().size() floats.
  // Throws OutOfRange for a token or target outside the vocabulary before anything is written.
  double forward_backward(const float* params, float* grads, const TokenBatch& tokens,
                          const TokenBatch& targets, const TrainOptions& options, void* workspace,
                          std::size_t workspace_bytes) const;

  // Mean cross-entropy without dropout.
  double loss(const float* params, const TokenBatch& tokens, const TokenBatch& targets,
              void* workspace, std::size_t workspace_bytes, std::int64_t ignore_index = -100) const;

  // logits: [batch, length, vocab_size] f32, without dropout.
  void logits(const float* params, const TokenBatch& tokens, float* logits, void* workspace,
              std::size_t workspace_bytes) const;

  // Bytes of workspace (64-byte aligned) in which `batch` rows can grow to `capacity` ids.
  std::size_t generation_workspace_bytes(std::int64_t batch, std::int64_t capacity) const;

  // Appends n_new sampled tokens to each row and moves length and cached on, so that the next call
  // goes on from there: n_new calls of one token give the same ids. Until cached is set to 0, the
  // workspace, the parameters and the ids have to stay as they are. A row's ids do not depend on
  // the batch around it, nor on the number of threads.
  // The model sees the last block_size tokens. Up to there a token costs one visit of the
  // parameters, since keys and values are kept. Beyond, each token moves the window, hence every
  // position in it, and costs a pass over block_size tokens.
  // logits: null, or [batch, vocab_size] f32, takes those that the last token was drawn from.
  // Throws OutOfRange for an id outside the vocabulary before anything is written, RuntimeFailure
  // where a logit is NaN or the largest is not finite; the tokens up to there stand in ids.
  void generate(const float* params, Generation& sequences, std::int64_t n_new,
                const SampleOptions& options, void* workspace, std::size_t workspace_bytes,
                float* logits = nullptr) const;

  // Dropout sites: the embedding sum [B, T, C]; in each layer the attention weights [B, H, T, T],
  // the attention output [B, T, C] and the feed-forward output [B, T, C].
  static constexpr std::uint32_t embedding_site() { return 0; }
  static constexpr std::uint32_t attention_site(std::int64_t layer) {
    return 1 + 3 * static_cast<std::uint32_t>(layer);
  }
  static constexpr std::uint32_t residual_site(std::int64_t layer) {
    return 2 + 3 * static_cast<std::uint32_t>(layer);
  }
  static constexpr std::uint32_t feed_forward_site(std::int64_t layer) {
    return 3 + 3 * static_cast<std::uint32_t>(layer);
  }

 private:
  GptConfig config_;
  Layout layout_;
};

}  // namespace flatstep
