#include "gpt/decoder.h"

#include <algorithm>
#include <utility>

#include "core/arena.h"
#include "gpt/tensors.h"

namespace flatstep {
namespace {

// Positions that one pass over prompts takes, unless a single prompt is longer: short prompts go
// together, and long ones do not multiply the memory.
constexpr std::int64_t kPassRows = 1024;

std::int64_t prompts_together(std::int64_t batch, std::int64_t context) {
  return std::clamp<std::int64_t>(kPassRows / context, 1, batch);
}

std::int64_t most_rows(std::int64_t batch, std::int64_t longest) {
  return std::max(batch, std::min(batch * longest, std::max(longest, kPassRows)));
}

}  // namespace

DecoderSpace::DecoderSpace(const GptConfig& config, std::int64_t batch, std::int64_t longest,
                           void* base) {
  const std::int64_t c = config.n_embd, heads = config.n_head, v = config.vocab_size;
  const std::int64_t rows = most_rows(batch, longest);
  const std::int64_t capacity = cpu::decode_ops().capacity(longest);
  Arena arena(base);
  for (std::int64_t i = 0; i < config.n_layer; ++i) {
    layers.push_back({nullptr, heads, c / heads, capacity});
    layers.back().data = arena.take<float>(batch * heads * layers.back().head_floats());
  }
  logits = arena.take<float>(batch * v);
  drawn = arena.take<std::int64_t>(batch);
  order = arena.take<std::int64_t>(batch * v);
  weights = arena.take<double>(batch * v);
  tokens = arena.take<std::int64_t>(rows);
  stream = arena.take<float>(rows * c);
  norm.out = arena.take<float>(rows * c);
  norm.mean = arena.take<float>(rows);
  norm.rstd = arena.take<float>(rows);
  qkv = arena.take<float>(rows * 3 * c);
  attention = arena.take<float>(rows * c);
  projected = arena.take<float>(rows * c);
  hidden = arena.take<float>(rows * 4 * c);
  activated = arena.take<float>(rows * 4 * c);
  log_sum = arena.take<float>(rows * heads);
  scores = arena.take<float>(batch * heads * capacity);
  // A pass has several prompts, or a single long one.
  const GptOps& ops = cpu::gpt_ops();
  const DecodeOps& decode = cpu::decode_ops();
  scratch = arena.take<float>(
      std::max({ops.scratch_floats(config, {1, longest}), ops.scratch_floats(config, {rows, 1}),
                decode.scratch_floats(batch, c, 4 * c), decode.scratch_floats(batch, 4 * c, c)}));
  bytes = arena.used();
}

void Decoder::refill(const std::int64_t* ids, std::int64_t stride, std::int64_t batch,
                     std::int64_t length, std::int64_t context) const {
  const std::int64_t together = prompts_together(batch, context);
  for (std::int64_t b = 0; b < batch; b += together) {
    const std::int64_t count = std::min(together, batch - b);
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(ids + (b + i) * stride + length - context, context, space_.tokens + i * context);
    }
    pass({count, context}, b, 0);
  }
}

void Decoder::advance(const std::int64_t* ids, std::int64_t stride, std::int64_t batch,
                      std::int64_t length) const {
  for (std::int64_t b = 0; b < batch; ++b) space_.tokens[b] = ids[b * stride + length - 1];
  pass({batch, 1}, 0, length - 1);
}

// From space.qkv to space.attention. Returns the rows that go on: all, but behind the last layer
// only the last position of each sequence, which then stand together.
Decoder::Rows Decoder::attention(std::int64_t layer, SequenceShape shape, std::int64_t sequence,
                                 std::int64_t first) const {
  const std::int64_t c = config_.n_embd;
  const CachedLayer& cache = space_.layers[layer];
  decode_.remember(space_.qkv, shape.batch, shape.length, cache, sequence, first);
  if (shape.length > 1 && layer + 1 < config_.n_layer) {
    ops_.attention(space_.qkv, shape, config_.n_head, c, {}, space_.attention, space_.log_sum,
                   space_.scratch);
    return {shape.rows(), false};
  }
  const std::int64_t last = shape.length - 1;
  decode_.attend(space_.qkv + last * 3 * c, shape.length * 3 * c, shape.batch, cache, sequence,
                 first + shape.length, space_.scores, space_.attention);
  for (std::int64_t b = 0; b < shape.batch && last > 0; ++b) {
    std::copy_n(space_.stream + (b * shape.length + last) * c, c, space_.stream + b * c);
  }
  return {shape.batch, true};
}

Gemm Decoder::product(Rows rows, const float* x, std::int64_t from, const float* weight,
                      const float* bias, std::int64_t to, float* out) {
  return {false, false, rows.count, to, from, x, from, weight, to, out, to, false, bias};
}

void Decoder::linear(Rows rows, const float* x, std::int64_t from, const float* weight,
                     const float* bias, std::int64_t to, float* out) const {
  if (rows.single) {
    decode_.linear(x, rows.count, from, weight, bias, to, nullptr, out, space_.scratch);
  } else {
    ops_.gemm(product(rows, x, from, weight, bias, to, out), space_.scratch);
  }
}

void Decoder::add_linear(Rows rows, const float* x, std::int64_t from, const float* weight,
                         const float* bias) const {
  const std::int64_t c = config_.n_embd;
  if (rows.single) {
    decode_.linear(x, rows.count, from, weight, bias, c, space_.stream, space_.stream,
                   space_.scratch);
  } else {
    ops_.gemm_residual(product(rows, x, from, weight, bias, c, space_.projected), space_.stream, {},
                       space_.scratch);
    std::swap(space_.stream, space_.projected);
  }
}

void Decoder::feed_forward(Rows rows, const LayerTensors<const float>& p) const {
  const std::int64_t c = config_.n_embd;
  ops_.layer_norm(space_.stream, p.ln_2_weight, p.ln_2_bias, rows.count, c, space_.norm);
  if (rows.single) {
    decode_.linear_gelu(space_.norm.out, rows.count, c, p.c_fc_weight, p.c_fc_bias, 4 * c,
                        space_.hidden, space_.activated, space_.scratch);
  } else {
    ops_.gemm_gelu(
        product(rows, space_.norm.out, c, p.c_fc_weight, p.c_fc_bias, 4 * c, space_.hidden),
        space_.activated, false, space_.scratch);
  }
  add_linear(rows, space_.activated, 4 * c, p.mlp_proj_weight, p.mlp_proj_bias);
}

void Decoder::pass(SequenceShape shape, std::int64_t sequence, std::int64_t first) const {
  const std::int64_t c = config_.n_embd;
  const SharedTensors<const float> shared(layout_, params_);
  ops_.embed(shared.token_table, shared.position_table + first * c, space_.tokens, shape, c, {},
             space_.stream);
  Rows rows{shape.rows(), shape.length == 1};
  for (std::int64_t i = 0; i < config_.n_layer; ++i) {
    const LayerTensors<const float> p(layout_, params_, i);
    ops_.layer_norm(space_.stream, p.ln_1_weight, p.ln_1_bias, rows.count, c, space_.norm);
    linear(rows, space_.norm.out, c, p.c_attn_weight, p.c_attn_bias, 3 * c, space_.qkv);
    rows = attention(i, shape, sequence, first);
    add_linear(rows, space_.attention, c, p.attn_proj_weight, p.attn_proj_bias);
    feed_forward(rows, p);
  }
  ops_.layer_norm(space_.stream, shared.ln_f_weight, shared.ln_f_bias, rows.count, c, space_.norm);
  decode_.logits(space_.norm.out, rows.count, c, shared.token_table, config_.vocab_size,
                 space_.logits + sequence * config_.vocab_size);
}

}  // namespace flatstep
