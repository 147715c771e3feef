// The steps of the Transformer's forward and backward pass over a batch, or over a part of one.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "flatstep/gpt.h"
#include "flatstep/loss.h"
#include "gpt/ops.h"
#include "gpt/workspace.h"

namespace flatstep {

// What the pass needs to know.
struct Pipeline {
  const GptOps& ops;
  const GptConfig& config;
  const Layout& layout;
  const float* params;
  SequenceShape shape;
  const std::int64_t *tokens, *targets;  // [rows]
  const Workspace& space;
  double dropout;          // 0 in evaluation
  DropoutKey key;          // of all dropout layers but for the site
  std::int64_t first_row;  // of the batch, of which this may be a part
  bool recompute = false;  // the layers share their activations
  // Of a backward pass; partials and profile may be null.
  float* grads = nullptr;
  GradPartials* partials = nullptr;
  GptProfile* profile = nullptr;

  // Leaves the final hidden states in space.ln_f.out.
  void forward() const;
  // logits[rows, V] of the hidden states.
  void head(float* logits) const;
  // The loss; with grad_hidden, also its gradient and that of the token table.
  double head_loss(const CrossEntropyOptions& options, float* grad_hidden, float* grad_table,
                   bool accumulate) const;
  // The loss of forward() and head_loss(), with the gradients of all parameters.
  double forward_backward(const CrossEntropyOptions& options, bool accumulate) const;
  // Adds those of another part of the batch to all gradients, and takes the sums of squares.
  void finish_all(const float* addend) const;

 private:
  std::int64_t rows() const { return shape.rows(); }
  std::int64_t width() const { return config.n_embd; }
  DropoutSite site(std::uint32_t number) const {
    return {dropout, {key.seed, key.step, number}, first_row};
  }
  bool small_layer() const;

  Gemm linear(const float* x, const float* weight, const float* bias, std::int64_t from,
              std::int64_t to, float* out) const;
  Gemm input_gradient(const float* grad_out, const float* weight, std::int64_t from,
                      std::int64_t to, float* grad_x) const;
  void weight_gradient(const float* x, const float* grad_out, std::int64_t from, std::int64_t to,
                       float* grad_weight, bool accumulate) const;
  void finished(std::initializer_list<float*> tensors) const;

  float* after(std::int64_t layer) const;
  void forward_to_activated(std::int64_t index) const;
  void forward_layer(std::int64_t index) const;

  const float* upstream() const;
  BranchGradient branch(std::uint32_t number, float* bias) const;
  BranchGradient branch_before(std::int64_t index) const;
  void backward_layer(std::int64_t index, bool accumulate) const;
};

}  // namespace flatstep
