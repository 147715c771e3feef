// The Transformer's forward and backward pass, written once against GptOps.
#include <algorithm>
#include <initializer_list>
#include <optional>

#include "core/checks.h"
#include "flatstep/gpt.h"
#include "flatstep/loss.h"
#include "gpt/batch.h"
#include "gpt/ops.h"
#include "gpt/tensors.h"
#include "gpt/timed_ops.h"
#include "gpt/workspace.h"

namespace flatstep {
namespace {

// What one pass needs to know; the members below are its steps.
struct Pipeline {
  const GptOps& ops;
  const GptConfig& config;
  const Layout& layout;
  const float* params;
  SequenceShape shape;
  Workspace& space;
  double dropout;  // 0 in evaluation
  std::uint64_t seed;
  std::int64_t step;
  // Of a backward pass; partials and profile may be null.
  float* grads = nullptr;
  GradPartials* partials = nullptr;
  GptProfile* profile = nullptr;
  bool recompute = false;  // the layers share their activations

  std::int64_t rows() const { return shape.rows(); }
  std::int64_t width() const { return config.n_embd; }
  DropoutSite site(std::uint32_t number) const { return {dropout, {seed, step, number}}; }

  // out[rows, to] = x[rows, from] weight[from, to] + bias
  Gemm linear(const float* x, const float* weight, const float* bias, std::int64_t from,
              std::int64_t to, float* out) const {
    return {false, false, rows(), to, from, x, from, weight, to, out, to, false, bias};
  }

  // grad_x[rows, from] = grad_out[rows, to] weight^T
  Gemm input_gradient(const float* grad_out, const float* weight, std::int64_t from,
                      std::int64_t to, float* grad_x) const {
    return {false, true, rows(), from, to, grad_out, to, weight, to, grad_x, from, false, nullptr};
  }

  // grad_weight[from, to] = x^T grad_out
  void weight_gradient(const float* x, const float* grad_out, std::int64_t from, std::int64_t to,
                       float* grad_weight, bool accumulate) const {
    ops.gemm({true, false, from, to, rows(), x, from, grad_out, to, grad_weight, to, accumulate,
              nullptr},
             space.scratch);
    if (!small_layer()) finished({grad_weight});
  }

  // Takes the sums of squares of gradients that nothing more is added to, while they are in the
  // cache.
  void finished(std::initializer_list<const float*> tensors) const {
    if (partials == nullptr) return;
    const auto& entries = layout.entries();
    std::vector<SquareSums> arrays;
    for (const float* tensor : tensors) {
      const auto entry = std::lower_bound(
          entries.begin(), entries.end(), tensor - grads,
          [](const LayoutEntry& e, std::int64_t offset) { return e.offset < offset; });
      const auto index = static_cast<std::size_t>(entry - entries.begin());
      arrays.push_back({tensor, entry->size, &partials->sums[partials->first_index(index)]});
    }
    ops.sum_squares(arrays);
  }

  // The gradients of a small layer are still in the cache at its end, and one visit of all is
  // quicker.
  bool small_layer() const { return 12 * width() * width() <= 1 << 18; }

  float* after(std::int64_t layer) const {
    return layer + 1 < config.n_layer ? space.layers[layer + 1].input : space.output;
  }

  // All of a layer's forward pass that its backward pass needs.
  void forward_to_activated(std::int64_t index) const {
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
    ops.gemm_gelu(linear(a.ln_2.out, p.c_fc_weight, p.c_fc_bias, c, 4 * c, a.hidden), a.activated,
                  space.scratch);
  }

  void forward_layer(std::int64_t index) const {
    const LayerActivations& a = space.layers[index];
    const LayerTensors<const float> p(layout, params, index);
    const std::int64_t c = width();
    forward_to_activated(index);
    ops.gemm_residual(
        linear(a.activated, p.mlp_proj_weight, p.mlp_proj_bias, 4 * c, c, after(index)), a.middle,
        site(Gpt::feed_forward_site(index)), space.scratch);
  }

  // Leaves the final hidden states in space.ln_f.out.
  void forward() const {
    const SharedTensors<const float> p(layout, params);
    float* stream = space.layers.front().input;
    ops.embed(p.token_table, p.position_table, space.tokens, shape, width(),
              site(Gpt::embedding_site()), stream);
    for (std::int64_t i = 0; i < config.n_layer; ++i) forward_layer(i);
    ops.layer_norm(space.output, p.ln_f_weight, p.ln_f_bias, rows(), width(), space.ln_f);
  }

  // logits[rows, V] of the hidden states.
  void head(float* logits) const {
    const std::int64_t c = width(), v = config.vocab_size;
    const float* table = SharedTensors<const float>(layout, params).token_table;
    ops.gemm({false, true, rows(), v, c, space.ln_f.out, c, table, c, logits, v, false, nullptr},
             space.scratch);
  }

  // The loss; with grad_hidden, also its gradient and that of the token table.
  double head_loss(const CrossEntropyOptions& options, float* grad_hidden, float* grad_table,
                   bool accumulate) const {
    const Stopwatch watch(profile == nullptr ? nullptr : &profile->head);
    const std::int64_t c = width();
    LinearCrossEntropyOutputs outputs;
    outputs.grad_hidden = grad_hidden;
    outputs.grad_weight = grad_table;
    outputs.accumulate = accumulate;
    return linear_cross_entropy({space.ln_f.out, DType::f32, rows(), c},
                                {SharedTensors<const float>(layout, params).token_table, DType::f32,
                                 config.vocab_size, c},
                                nullptr, {space.targets, DType::i64, rows()}, options, outputs,
                                space.loss_workspace, space.loss_workspace_bytes)
        .loss;
  }

  // The gradient of a branch that passed one dropout layer: that of the stream where nothing drops.
  const float* upstream() const { return dropout > 0 ? space.grad_branch : space.grad_stream; }
  BranchGradient branch(std::uint32_t number, float* bias) const {
    return {site(number), dropout > 0 ? space.grad_branch : nullptr, bias};
  }
  // Of what was added to the stream that leaves layer index - 1: its feed-forward branch, or the
  // embeddings.
  BranchGradient branch_before(std::int64_t index) const {
    if (index == 0) return branch(Gpt::embedding_site(), nullptr);
    return branch(Gpt::feed_forward_site(index - 1),
                  LayerTensors<float>(layout, grads, index - 1).mlp_proj_bias);
  }

  // space.grad_stream: the gradient of the layer's output on entry, of its input on return; with
  // it comes that of the branch, see branch_before.
  void backward_layer(std::int64_t index, bool accumulate) const {
    const LayerActivations& a = space.layers[index];
    const LayerTensors<const float> p(layout, params, index);
    const LayerTensors<float> g(layout, grads, index);
    const std::int64_t c = width();
    // A product for a weight's gradient is the last to need its input: the gradient goes there.
    float* wide = a.activated;  // [rows, 4C], then [rows, 3C]

    weight_gradient(a.activated, upstream(), 4 * c, c, g.mlp_proj_weight, accumulate);
    ops.gemm_gelu_backward(input_gradient(upstream(), p.mlp_proj_weight, 4 * c, c, wide), a.hidden,
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

  double forward_backward(const CrossEntropyOptions& options, bool accumulate) const {
    forward();
    const SharedTensors<const float> p(layout, params);
    const SharedTensors<float> g(layout, grads);
    const double loss = head_loss(options, space.grad_out, g.token_table, accumulate);
    ops.layer_norm_backward(space.grad_out, space.output, p.ln_f_weight, space.ln_f, rows(),
                            width(), false, space.grad_stream, g.ln_f_weight, g.ln_f_bias,
                            branch_before(config.n_layer), accumulate, space.scratch);
    for (std::int64_t i = config.n_layer - 1; i >= 0; --i) {
      // The last layer's are still there.
      if (recompute && i + 1 < config.n_layer) forward_to_activated(i);
      backward_layer(i, accumulate);
    }
    ops.embed_backward(upstream(), space.tokens, shape, width(), g.token_table, g.position_table,
                       accumulate);
    if (!accumulate) {  // positions that this batch did not reach
      std::fill(g.position_table + shape.length * width(),
                g.position_table + config.block_size * width(), 0.0f);
    }
    finished({g.ln_f_weight, g.ln_f_bias, g.token_table, g.position_table});
    return loss;
  }
};

CrossEntropyOptions loss_options(std::int64_t valid, double divisor, double label_smoothing,
                                 std::int64_t ignore_index) {
  CrossEntropyOptions options;
  options.label_smoothing = label_smoothing;
  options.ignore_index = ignore_index;
  options.divisor = divisor > 0 ? divisor : static_cast<double>(std::max<std::int64_t>(1, valid));
  return options;
}

Pass training_pass(bool recompute) { return recompute ? Pass::recomputing : Pass::training; }

// Checks the batch and the workspace, copies the tokens and calls body(pipeline).
template <class Body>
void run(const GptConfig& config, const Layout& layout, const float* params,
         const TokenBatch& tokens, Pass pass, void* workspace, std::size_t workspace_bytes,
         const DropoutKey& key, GptProfile* profile, const Body& body) {
  check_shape(config, tokens.batch, tokens.length);
  check_buffers(layout, params, nullptr);
  const SequenceShape shape{tokens.batch, tokens.length};
  std::optional<TimedGptOps> timed;
  if (profile != nullptr) timed.emplace(cpu::gpt_ops(), *profile);
  const GptOps& ops = timed ? *timed : cpu::gpt_ops();
  // Inside, the number of threads is fixed, and with it the size of the workspace.
  ops.together([&] {
    require_workspace(workspace, workspace_bytes, Workspace(config, shape, pass, nullptr).bytes);
    Workspace space(config, shape, pass, workspace);
    copy_tokens(tokens, config.vocab_size, space.tokens);
    const double dropout = pass == Pass::inference ? 0.0 : config.dropout;
    body(Pipeline{ops, config, layout, params, shape, space, dropout, key.seed, key.step, nullptr,
                  nullptr, profile, pass == Pass::recomputing});
  });
}

}  // namespace

std::size_t Gpt::training_workspace_bytes(std::int64_t batch, std::int64_t length,
                                          bool recompute) const {
  return memory(batch, length, recompute).workspace;
}

GptMemory Gpt::memory(std::int64_t batch, std::int64_t length, bool recompute) const {
  check_shape(config_, batch, length);
  const Workspace space(config_, {batch, length}, training_pass(recompute), nullptr);
  GptMemory memory;
  memory.params = memory.grads = static_cast<std::size_t>(layout_.size()) * sizeof(float);
  memory.workspace = space.bytes;
  memory.tokens = space.token_bytes;
  memory.activations = space.activation_bytes;
  memory.buffers = space.bytes - space.token_bytes - space.activation_bytes;
  return memory;
}

std::size_t Gpt::inference_workspace_bytes(std::int64_t batch, std::int64_t length) const {
  check_shape(config_, batch, length);
  return Workspace(config_, {batch, length}, Pass::inference, nullptr).bytes;
}

double Gpt::forward_backward(const float* params, float* grads, const TokenBatch& tokens,
                             const TokenBatch& targets, const TrainOptions& options,
                             void* workspace, std::size_t workspace_bytes) const {
  check_buffers(layout_, params, grads);
  require(options.label_smoothing >= 0 && options.label_smoothing < 1, "label_smoothing",
          options.label_smoothing, "a number in [0, 1)");
  require(std::isfinite(options.loss_divisor) && options.loss_divisor >= 0, "loss_divisor",
          options.loss_divisor, "a finite number >= 0");
  require(options.step >= 0 && options.step < (std::int64_t{1} << 48), "step", options.step,
          "a number in [0, 2^48)");
  const Stopwatch watch(options.profile == nullptr ? nullptr : &options.profile->pass);
  double loss = 0;
  run(config_, layout_, params, tokens, training_pass(options.recompute), workspace,
      workspace_bytes, {options.seed, options.step, 0}, options.profile,
      [&](const Pipeline& pipeline) {
        const std::int64_t valid = copy_targets(targets, tokens, config_.vocab_size,
                                                options.ignore_index, pipeline.space.targets);
        if (options.partials != nullptr) *options.partials = GradPartials(layout_);
        Pipeline training = pipeline;
        training.grads = grads;
        training.partials = options.partials;
        loss =
            training.forward_backward(loss_options(valid, options.loss_divisor,
                                                   options.label_smoothing, options.ignore_index),
                                      options.accumulate);
      });
  return loss;
}

double Gpt::loss(const float* params, const TokenBatch& tokens, const TokenBatch& targets,
                 void* workspace, std::size_t workspace_bytes, std::int64_t ignore_index) const {
  double loss = 0;
  run(config_, layout_, params, tokens, Pass::inference, workspace, workspace_bytes, {}, nullptr,
      [&](const Pipeline& pipeline) {
        const std::int64_t valid =
            copy_targets(targets, tokens, config_.vocab_size, ignore_index, pipeline.space.targets);
        pipeline.forward();
        loss = pipeline.head_loss(loss_options(valid, 0, 0, ignore_index), nullptr, nullptr, false);
      });
  return loss;
}

void Gpt::logits(const float* params, const TokenBatch& tokens, float* logits, void* workspace,
                 std::size_t workspace_bytes) const {
  run(config_, layout_, params, tokens, Pass::inference, workspace, workspace_bytes, {}, nullptr,
      [&](const Pipeline& pipeline) {
        require_buffer(logits, pipeline.rows() * config_.vocab_size, DType::f32, "logits");
        pipeline.forward();
        pipeline.head(logits);
      });
}

}  // namespace flatstep
