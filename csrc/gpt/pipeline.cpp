// Written once against GptOps.
#include "gpt/pipeline.h"

#include <algorithm>
#include <vector>

#include "gpt/tensors.h"
#include "gpt/timed_ops.h"

namespace flatstep {

// out[rows, to] = x[rows, from] weight[from, to] + bias
Gemm Pipeline::linear(const float* x, const float* weight, const float* bias, std::int64_t from,
                      std::int64_t to, float* out) const {
  return {false, false, rows(), to, from, x, from, weight, to, out, to, false, bias};
}

// grad_x[rows, from] = grad_out[rows, to] weight^T
Gemm Pipeline::input_gradient(const float* grad_out, const float* weight, std::int64_t from,
                              std::int64_t to, float* grad_x) const {
  return {false, true, rows(), from, to, grad_out, to, weight, to, grad_x, from, false, nullptr};
}

// grad_weight[from, to] = x^T grad_out
void Pipeline::weight_gradient(const float* x, const float* grad_out, std::int64_t from,
                               std::int64_t to, float* grad_weight, bool accumulate) const {
  ops.gemm(
      {true, false, from, to, rows(), x, from, grad_out, to, grad_weight, to, accumulate, nullptr},
      space.scratch);
  if (!small_layer()) finished({grad_weight});
}

// Takes the sums of squares of gradients that nothing more is added to, while they are in the
// cache.
void Pipeline::finished(std::initializer_list<float*> tensors) const {
  if (partials == nullptr) return;
  const auto& entries = layout.entries();
  std::vector<FinishedGradient> gradients;
  for (float* tensor : tensors) {
    const auto entry = std::lower_bound(
        entries.begin(), entries.end(), tensor - grads,
        [](const LayoutEntry& e, std::int64_t offset) { return e.offset < offset; });
    const auto index = static_cast<std::size_t>(entry - entries.begin());
    gradients.push_back(
        {tensor, entry->size, nullptr, &partials->sums[partials->first_index(index)]});
  }
  ops.finish(gradients);
}

void Pipeline::finish_all(const float* addend) const {
  std::vector<FinishedGradient> gradients;
  for (std::size_t i = 0; i < layout.entries().size(); ++i) {
    const LayoutEntry& entry = layout.entries()[i];
    gradients.push_back({grads + entry.offset, entry.size, addend + entry.offset,
                         partials ? &partials->sums[partials->first_index(i)] : nullptr});
  }
  ops.finish(gradients);
}

// The gradients of a small layer are still in the cache at its end, and one visit of all is
// quicker.
bool Pipeline::small_layer() const { return 12 * width() * width() <= 1 << 18; }

float* Pipeline::after(std::int64_t layer) const {
  return layer + 1 < config.n_layer ? space.layers[layer + 1].input : space.output;
}

// All of a layer's forward pass that its backward pass needs.
void Pipeline::forward_to_activated(std::int64_t index) const {
  const LayerActivations& a = space.layers[index];
  const LayerTensors<const float> p(layout, params, index);
  const std::int64_t c = width();
  ops.layer_norm(a.input, p.ln_1_weight, p.ln_1_bias, rows(), c, a.ln_1);
  ops.gemm(linear(a.ln_1.out, p.c_attn_weight, p.c_attn_bias, c, 3 * c, a.qkv), space.scratch);
  ops.attention(a.qkv, shape, config.n_head, c, site(Gpt::attention_site(index)), a.attention,
                a.log_sum, space.scratch);
  ops.gemm_residual(linear(a.attention, p.attn_proj_weight, p.attn_proj_bias, c, c, a.middle),
                    a.input, site(Gpt::residual_site(index)), space.scratch);
  ops.layer_norm(a.middle, p.ln_2_weight, p.ln_2_bias, rows(), c, a.ln_2);
  ops.gemm_gelu(linear(a.ln_2.out, p.c_fc_weight, p.c_fc_bias, c, 4 * c, a.slope), a.activated,
                grads != nullptr, space.scratch);
}

void Pipeline::forward_layer(std::int64_t index) const {
  const LayerActivations& a = space.layers[index];
  const LayerTensors<const float> p(layout, params, index);
  const std::int64_t c = width();
  forward_to_activated(index);
  ops.gemm_residual(linear(a.activated, p.mlp_proj_weight, p.mlp_proj_bias, 4 * c, c, after(index)),
                    a.middle, site(Gpt::feed_forward_site(index)), space.scratch);
}

void Pipeline::forward() const {
  const SharedTensors<const float> p(layout, params);
  float* stream = space.layers.front().input;
  ops.embed(p.token_table, p.position_table, tokens, shape, width(), site(Gpt::embedding_site()),
            stream);
  for (std::int64_t i = 0; i < config.n_layer; ++i) forward_layer(i);
  ops.layer_norm(space.output, p.ln_f_weight, p.ln_f_bias, rows(), width(), space.ln_f);
}

void Pipeline::head(float* logits) const {
  const std::int64_t c = width(), v = config.vocab_size;
  const float* table = SharedTensors<const float>(layout, params).token_table;
  ops.gemm({false, true, rows(), v, c, space.ln_f.out, c, table, c, logits, v, false, nullptr},
           space.scratch);
}

double Pipeline::head_loss(const CrossEntropyOptions& options, float* grad_hidden,
                           float* grad_table, bool accumulate) const {
  const Stopwatch watch(profile == nullptr ? nullptr : &profile->head);
  const std::int64_t c = width();
  LinearCrossEntropyOutputs outputs;
  outputs.grad_hidden = grad_hidden;
  outputs.grad_weight = grad_table;
  outputs.accumulate = accumulate;
  return linear_cross_entropy({space.ln_f.out, DType::f32, rows(), c},
                              {SharedTensors<const float>(layout, params).token_table, DType::f32,
                               config.vocab_size, c},
                              nullptr, {targets, DType::i64, rows()}, options, outputs,
                              space.loss_workspace, space.loss_workspace_bytes)
      .loss;
}

// The gradient of a branch that passed one dropout layer: that of the stream where nothing drops.
const float* Pipeline::upstream() const {
  return dropout > 0 ? space.grad_branch : space.grad_stream;
}
BranchGradient Pipeline::branch(std::uint32_t number, float* bias) const {
  return {site(number), dropout > 0 ? space.grad_branch : nullptr, bias};
}
// Of what was added to the stream that leaves layer index - 1: its feed-forward branch, or the
// embeddings.
BranchGradient Pipeline::branch_before(std::int64_t index) const {
  if (index == 0) return branch(Gpt::embedding_site(), nullptr);
  return branch(Gpt::feed_forward_site(index - 1),
                LayerTensors<float>(layout, grads, index - 1).mlp_proj_bias);
}

// space.grad_stream: the gradient of the layer's output on entry, of its input on return; with
// it comes that of the branch, see branch_before.
void Pipeline::backward_layer(std::int64_t index, bool accumulate) const {
  const LayerActivations& a = space.layers[index];
  const LayerTensors<const float> p(layout, params, index);
  const LayerTensors<float> g(layout, grads, index);
  const std::int64_t c = width();
  // A product for a weight's gradient is the last to need its input: the gradient goes there.
  float* wide = a.activated;  // [rows, 4C], then [rows, 3C]

  weight_gradient(a.activated, upstream(), 4 * c, c, g.mlp_proj_weight, accumulate);
  ops.gemm_gelu_backward(input_gradient(upstream(), p.mlp_proj_weight, 4 * c, c, wide), a.slope,
                         g.c_fc_bias, accumulate, space.scratch);
  weight_gradient(a.ln_2.out, wide, c, 4 * c, g.c_fc_weight, accumulate);
  ops.gemm(input_gradient(wide, p.c_fc_weight, c, 4 * c, space.grad_out), space.scratch);
  ops.layer_norm_backward(space.grad_out, a.middle, p.ln_2_weight, a.ln_2, rows(), c, true,
                          space.grad_stream, g.ln_2_weight, g.ln_2_bias,
                          branch(Gpt::residual_site(index), g.attn_proj_bias), accumulate,
                          space.scratch);

  weight_gradient(a.attention, upstream(), c, c, g.attn_proj_weight, accumulate);
  ops.gemm(input_gradient(upstream(), p.attn_proj_weight, c, c, space.grad_out), space.scratch);
  ops.attention_backward(a.qkv, a.attention, a.log_sum, space.grad_out, shape, config.n_head, c,
                         site(Gpt::attention_site(index)), wide, space.scratch);
  ops.column_sum(wide, rows(), 3 * c, g.c_attn_bias, accumulate, space.scratch);
  weight_gradient(a.ln_1.out, wide, c, 3 * c, g.c_attn_weight, accumulate);
  ops.gemm(input_gradient(wide, p.c_attn_weight, c, 3 * c, space.grad_out), space.scratch);
  ops.layer_norm_backward(space.grad_out, a.input, p.ln_1_weight, a.ln_1, rows(), c, true,
                          space.grad_stream, g.ln_1_weight, g.ln_1_bias, branch_before(index),
                          accumulate, space.scratch);
  finished({g.mlp_proj_bias, g.c_fc_bias, g.ln_2_weight, g.ln_2_bias, g.attn_proj_bias,
            g.c_attn_bias, g.ln_1_weight, g.ln_1_bias});
  if (small_layer()) {
    finished({g.mlp_proj_weight, g.c_fc_weight, g.attn_proj_weight, g.c_attn_weight});
  }
}

double Pipeline::forward_backward(const CrossEntropyOptions& options, bool accumulate) const {
  forward();
  const SharedTensors<const float> p(layout, params);
  const SharedTensors<float> g(layout, grads);
  const double loss = head_loss(options, space.grad_out, g.token_table, accumulate);
  ops.layer_norm_backward(space.grad_out, space.output, p.ln_f_weight, space.ln_f, rows(), width(),
                          false, space.grad_stream, g.ln_f_weight, g.ln_f_bias,
                          branch_before(config.n_layer), accumulate, space.scratch);
  for (std::int64_t i = config.n_layer - 1; i >= 0; --i) {
    // The last layer's are still there.
    if (recompute && i + 1 < config.n_layer) forward_to_activated(i);
    backward_layer(i, accumulate);
  }
  ops.embed_backward(upstream(), tokens, shape, width(), g.token_table, g.position_table,
                     accumulate);
  if (!accumulate) {  // positions that this batch did not reach
    std::fill(g.position_table + shape.length * width(),
              g.position_table + config.block_size * width(), 0.0f);
  }
  finished({g.ln_f_weight, g.ln_f_bias, g.token_table, g.position_table});
  return loss;
}

}  // namespace flatstep
