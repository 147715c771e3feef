#include "gpt/workspace.h"

#include <algorithm>
#include <limits>

#include "flatstep/loss.h"

namespace flatstep {
namespace {

LayerNormResult take_norm(Arena& arena, std::int64_t rows, std::int64_t width) {
  LayerNormResult norm{};
  norm.out = arena.take<float>(rows * width);
  norm.mean = arena.take<float>(rows);
  norm.rstd = arena.take<float>(rows);
  return norm;
}

// The head works on chunks of rows: as many as fit in 64 MB, but 16 for the largest vocabularies.
std::size_t head_bytes(const GptConfig& config, std::int64_t rows) {
  constexpr std::size_t kUsual = 64 << 20, kAny = std::numeric_limits<std::size_t>::max();
  const auto bytes = [&](std::int64_t count, std::size_t most) {
    return linear_cross_entropy_workspace_bytes(count, config.n_embd, config.vocab_size, DType::f32,
                                                {}, most);
  };
  return bytes(rows, std::max(kUsual, bytes(std::min<std::int64_t>(rows, 16), kAny)));
}

LayerActivations take_layer(Arena& arena, const GptConfig& config, SequenceShape shape) {
  const std::int64_t rows = shape.rows(), c = config.n_embd;
  LayerActivations layer{};
  layer.input = arena.take<float>(rows * c);
  layer.ln_1 = take_norm(arena, rows, c);
  layer.qkv = arena.take<float>(rows * 3 * c);
  layer.attention = arena.take<float>(rows * c);
  layer.log_sum = arena.take<float>(rows * config.n_head);
  layer.middle = arena.take<float>(rows * c);
  layer.ln_2 = take_norm(arena, rows, c);
  layer.slope = arena.take<float>(rows * 4 * c);
  layer.activated = arena.take<float>(rows * 4 * c);
  return layer;
}

// Where both halves fit the caches of two cores, and the sum of their gradients is soon done.
bool in_halves(const GptConfig& config, std::int64_t params, SequenceShape batch) {
  constexpr std::int64_t kWidth = 144, kParams = 1 << 21, kActivations = 1 << 18;
  return batch.batch % 2 == 0 && config.n_embd <= kWidth && params <= kParams &&
         batch.rows() * config.n_embd <= kActivations;
}

}  // namespace

Workspace::Workspace(const GptConfig& config, SequenceShape shape, Pass pass, Arena& arena) {
  const std::int64_t rows = shape.rows(), c = config.n_embd;
  const bool training = pass != Pass::inference;
  const std::size_t before = arena.used();
  for (std::int64_t i = 0; i < config.n_layer; ++i) {
    const bool own = i == 0 || pass == Pass::training;
    layers.push_back(own ? take_layer(arena, config, shape) : layers.front());
    if (!own && training) layers.back().input = arena.take<float>(rows * c);
  }
  // Without gradients the last layer may write over its input: nobody needs it any more.
  output = training ? arena.take<float>(rows * c) : layers.front().input;
  ln_f = take_norm(arena, rows, c);
  activation_bytes = arena.used() - before;
  grad_out = training ? arena.take<float>(rows * c) : nullptr;
  // While the loss is computed, no layer is at work.
  char* const shared = arena.take<char>(0);
  Arena head(shared), layer(shared);
  loss_workspace_bytes = head_bytes(config, rows);
  loss_workspace = head.take<char>(static_cast<std::int64_t>(loss_workspace_bytes));
  grad_stream = training ? layer.take<float>(rows * c) : nullptr;
  grad_branch = training && config.dropout > 0 ? layer.take<float>(rows * c) : nullptr;
  scratch = layer.take<float>(cpu::gpt_ops().scratch_floats(config, shape));
  arena.take<char>(static_cast<std::int64_t>(std::max(head.used(), layer.used())));
}

PassMemory::PassMemory(const GptConfig& config, std::int64_t params, SequenceShape batch, Pass pass,
                       void* base)
    : shape(batch) {
  Arena arena(base);
  tokens = arena.take<std::int64_t>(batch.rows());
  targets = arena.take<std::int64_t>(batch.rows());
  token_bytes = arena.used();
  const bool halves = pass != Pass::inference && in_halves(config, params, batch);
  if (halves) shape.batch /= 2;
  second_grads = halves ? arena.take<float>(params) : nullptr;
  activation_bytes = 0;
  for (int i = 0; i < (halves ? 2 : 1); ++i) {
    activation_bytes += parts.emplace_back(config, shape, pass, arena).activation_bytes;
  }
  bytes = arena.used();
}

}  // namespace flatstep
