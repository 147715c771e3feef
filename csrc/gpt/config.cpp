#include "core/checks.h"
#include "flatstep/gpt.h"

namespace flatstep {
namespace {

void check(const GptConfig& config) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  const auto extent = [](std::int64_t value, const char* name) {
    require(value >= 1 && value < kLimit, name, value, "a number from 1 to 2^31 - 1");
  };
  extent(config.vocab_size, "vocab_size");
  extent(config.block_size, "block_size");
  extent(config.n_layer, "n_layer");
  extent(config.n_head, "n_head");
  extent(config.n_embd, "n_embd");
  if (config.n_embd % config.n_head != 0) {
    fail("n_embd", to_text(config.n_embd), "a multiple of n_head " + to_text(config.n_head));
  }
  require(config.dropout >= 0 && config.dropout < 1, "dropout", config.dropout,
          "a probability in [0, 1)");
}

}  // namespace

Gpt::Gpt(const GptConfig& config) : config_(config) {
  check(config_);
  const std::int64_t c = config_.n_embd;
  const auto matrix = [this](const std::string& name, std::int64_t rows, std::int64_t columns) {
    layout_.add(name, {rows, columns});
  };
  const auto vector = [this](const std::string& name, std::int64_t size) {
    layout_.add(name, {size}, 1.0, 0.0);
  };
  matrix("transformer.wte.weight", config_.vocab_size, c);
  matrix("transformer.wpe.weight", config_.block_size, c);
  for (std::int64_t i = 0; i < config_.n_layer; ++i) {
    const std::string layer = "transformer.h." + std::to_string(i) + ".";
    vector(layer + "ln_1.weight", c);
    vector(layer + "ln_1.bias", c);
    matrix(layer + "attn.c_attn.weight", c, 3 * c);
    vector(layer + "attn.c_attn.bias", 3 * c);
    matrix(layer + "attn.c_proj.weight", c, c);
    vector(layer + "attn.c_proj.bias", c);
    vector(layer + "ln_2.weight", c);
    vector(layer + "ln_2.bias", c);
    matrix(layer + "mlp.c_fc.weight", c, 4 * c);
    vector(layer + "mlp.c_fc.bias", 4 * c);
    matrix(layer + "mlp.c_proj.weight", 4 * c, c);
    vector(layer + "mlp.c_proj.bias", c);
  }
  vector("transformer.ln_f.weight", c);
  vector("transformer.ln_f.bias", c);
}

}  // namespace flatstep
