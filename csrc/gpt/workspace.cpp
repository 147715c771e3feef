#include "gpt/workspace.h"

#include <algorithm>

#include "core/checks.h"
#include "flatstep/loss.h"

namespace flatstep {
namespace {

// Hands out 64-byte aligned stretches of one piece of memory, or only counts them.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    char* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }

  LayerNormResult take_norm(std::int64_t rows, std::int64_t width) {
    LayerNormResult norm{};
    norm.out = take<float>(rows * width);
    norm.mean = take<float>(rows);
    norm.rstd = take<float>(rows);
    return norm;
  }

  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

// Logits exist for so many rows at a time: at most 32 MB of them.
std::int64_t head_rows_of(const GptConfig& config, std::int64_t rows) {
  constexpr std::int64_t kLogits = std::int64_t{1} << 23;
  const std::int64_t fitting = std::max<std::int64_t>(kLogits / config.vocab_size / 16 * 16, 16);
  return std::min(rows, fitting);
}

LayerActivations take_layer(Arena& arena, const GptConfig& config, SequenceShape shape) {
  const std::int64_t rows = shape.rows(), c = config.n_embd;
  LayerActivations layer{};
  layer.input = arena.take<float>(rows * c);
  layer.ln_1 = arena.take_norm(rows, c);
  layer.qkv = arena.take<float>(rows * 3 * c);
  layer.attention = arena.take<float>(rows * c);
  layer.log_sum = arena.take<float>(rows * config.n_head);
  layer.middle = arena.take<float>(rows * c);
  layer.ln_2 = arena.take_norm(rows, c);
  layer.hidden = arena.take<float>(rows * 4 * c);
  layer.activated = arena.take<float>(rows * 4 * c);
  return layer;
}

}  // namespace

Workspace::Workspace(const GptConfig& config, SequenceShape shape, Pass pass, void* base) {
  const std::int64_t rows = shape.rows(), c = config.n_embd;
  const bool training = pass == Pass::training;
  Arena arena(base);
  tokens = arena.take<std::int64_t>(rows);
  targets = arena.take<std::int64_t>(rows);
  for (std::int64_t i = 0; i < config.n_layer; ++i) {
    layers.push_back(training || i == 0 ? take_layer(arena, config, shape) : layers.front());
  }
  // Without gradients the last layer may write over its input: nobody needs it any more.
  output = training ? arena.take<float>(rows * c) : layers.front().input;
  ln_f = arena.take_norm(rows, c);
  projected = arena.take<float>(rows * c);
  head_rows = head_rows_of(config, rows);
  logits = arena.take<float>(head_rows * config.vocab_size);
  loss_workspace =
      arena.take<char>(static_cast<std::int64_t>(cross_entropy_workspace_bytes(head_rows)));
  grad_stream = training ? arena.take<float>(rows * c) : nullptr;
  grad_branch = training ? arena.take<float>(rows * c) : nullptr;
  grad_wide = training ? arena.take<float>(rows * 4 * c) : nullptr;
  scratch = arena.take<float>(cpu::gpt_ops().scratch_floats(shape, c, config.n_head, 4 * c));
  bytes = arena.used();
}

}  // namespace flatstep
