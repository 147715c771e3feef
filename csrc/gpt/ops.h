// The operations of the Transformer that a device must offer. pipeline.cpp is written once against
// this interface. Every buffer is f32, row-major; activations are [rows, width] with
// rows = batch * length. Results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/tasks.h"
#include "flatstep/dropout.h"
#include "flatstep/gpt.h"
#include "flatstep/types.h"

namespace flatstep {

struct SequenceShape {
  std::int64_t batch, length;
  std::int64_t rows() const { return batch * length; }
};

// A dropout layer in this forward pass; nothing is dropped where p is 0.
struct DropoutSite {
  double p = 0.0;
  DropoutKey key;
  std::int64_t first_row = 0;  // of the batch that has the mask, where these rows are a part of it
};

struct LayerNormResult {
  float* out;
  float* mean;  // [rows]
  float* rstd;  // [rows]
};

// What a branch of the network hands back, given the gradient of the stream that it was added to.
struct BranchGradient {
  DropoutSite site;
  float* out;   // [rows, width]: dropout(gradient); null where nothing is dropped
  float* bias;  // [width]: the sum of that over the rows; or null
};

// A gradient that nothing more is added to, but `addend` unless that is null.
struct FinishedGradient {
  float* x;
  std::int64_t size;
  const float* addend;
  double* sums;  // takes the sums of squares of each GradPartials::kChunk elements; or null
};

class GptOps {
 public:
  virtual ~GptOps() = default;

  // Runs a body that calls the operations below, with the threads standing by in between.
  virtual void together(const std::function<void()>& body) const = 0;

  // Runs body(0) and body(1), which call the operations below, in together(): side by side where
  // each has threads of its own.
  virtual void halves(const std::function<void(int half)>& body) const = 0;

  // Floats of scratch that the operations below need for a pass over such a batch.
  virtual std::int64_t scratch_floats(const GptConfig& config, SequenceShape shape) const = 0;

  virtual void gemm(const Gemm& call, float* scratch) const = 0;
  // Products with what follows while C is in the cache; C is contiguous.
  // activated = gelu(C); then, with `slope`, C = gelu'(C), for the backward pass.
  virtual void gemm_gelu(const Gemm& call, float* activated, bool slope, float* scratch) const = 0;
  // C = residual + dropout(product); residual is not C
  virtual void gemm_residual(const Gemm& call, const float* residual, const DropoutSite& site,
                             float* scratch) const = 0;
  // C = product * slope; column_sums[j] = sum over rows of C[i, j], or added with
  // accumulate.
  virtual void gemm_gelu_backward(const Gemm& call, const float* slope, float* column_sums,
                                  bool accumulate, float* scratch) const = 0;

  // out[r] = dropout(token_table[tokens[r]] + position_table[r % length])
  virtual void embed(const float* token_table, const float* position_table,
                     const std::int64_t* tokens, SequenceShape shape, std::int64_t width,
                     const DropoutSite& site, float* out) const = 0;
  // Adds to grad_token_table; adds to, or overwrites, the first `length` rows of
  // grad_position_table.
  virtual void embed_backward(const float* grad, const std::int64_t* tokens, SequenceShape shape,
                              std::int64_t width, float* grad_token_table,
                              float* grad_position_table, bool accumulate) const = 0;

  virtual void layer_norm(const float* x, const float* weight, const float* bias, std::int64_t rows,
                          std::int64_t width, const LayerNormResult& result) const = 0;
  // grad_x is overwritten, or added to with add_to_x. Then come the gradients of the branch that
  // was added to the stream there.
  virtual void layer_norm_backward(const float* grad_out, const float* x, const float* weight,
                                   const LayerNormResult& forward, std::int64_t rows,
                                   std::int64_t width, bool add_to_x, float* grad_x,
                                   float* grad_weight, float* grad_bias,
                                   const BranchGradient& branch, bool accumulate,
                                   float* scratch) const = 0;

  // Causal attention; qkv is [rows, 3 * width], log_sum [batch, heads, length].
  virtual void attention(const float* qkv, SequenceShape shape, std::int64_t heads,
                         std::int64_t width, const DropoutSite& site, float* out, float* log_sum,
                         float* scratch) const = 0;
  virtual void attention_backward(const float* qkv, const float* out, const float* log_sum,
                                  const float* grad_out, SequenceShape shape, std::int64_t heads,
                                  std::int64_t width, const DropoutSite& site, float* grad_qkv,
                                  float* scratch) const = 0;

  // out[j] = sum over rows of x[i, j], or added to out with accumulate.
  virtual void column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                          bool accumulate, float* scratch) const = 0;

  // Adds what is to be added, and takes the sums of squares.
  virtual void finish(const std::vector<FinishedGradient>& gradients) const = 0;
};

namespace cpu {
const GptOps& gpt_ops();
}

}  // namespace flatstep
