#include "gpt/batch.h"

#include <optional>

#include "core/checks.h"

namespace flatstep {
namespace {

template <class Index>
std::int64_t copy_checked(const Index* ids, const TokenBatch& shape, std::int64_t vocab_size,
                          std::optional<std::int64_t> ignored, const char* argument,
                          std::int64_t* out) {
  std::int64_t valid = 0;
  for (std::int64_t i = 0; i < shape.batch * shape.length; ++i) {
    const std::int64_t id = ids[i];
    const bool skip = ignored && id == *ignored;
    if (!skip && (id < 0 || id >= vocab_size)) {
      check_id(id, vocab_size, argument, i / shape.length, i % shape.length);
    }
    out[i] = id;
    valid += skip ? 0 : 1;
  }
  return valid;
}

std::int64_t copy_ids(const TokenBatch& ids, std::int64_t vocab_size,
                      std::optional<std::int64_t> ignored, const char* argument,
                      std::int64_t* out) {
  require_buffer(ids.data, ids.batch * ids.length, ids.dtype, argument);
  if (ids.dtype == DType::i32) {
    return copy_checked(static_cast<const std::int32_t*>(ids.data), ids, vocab_size, ignored,
                        argument, out);
  }
  if (ids.dtype != DType::i64) fail(argument, name_of(ids.dtype), "int32 or int64");
  return copy_checked(static_cast<const std::int64_t*>(ids.data), ids, vocab_size, ignored,
                      argument, out);
}

}  // namespace

void check_id(std::int64_t id, std::int64_t vocab_size, const char* argument, std::int64_t row,
              std::int64_t position) {
  if (id >= 0 && id < vocab_size) return;
  throw OutOfRange(std::string(argument) + ": row " + std::to_string(row) + ", position " +
                   std::to_string(position) + " holds " + std::to_string(id) +
                   ", expected an id from 0 to " + std::to_string(vocab_size - 1));
}

void check_shape(const GptConfig& config, std::int64_t batch, std::int64_t length) {
  require(batch >= 1, "tokens", batch, "a batch of at least 1");
  if (length < 1 || length > config.block_size) {
    fail("tokens", "sequences of " + to_text(length),
         "a length from 1 to block_size " + to_text(config.block_size));
  }
}

void check_buffers(const Layout& layout, const float* params, const float* grads) {
  require_buffer(params, layout.size(), DType::f32, "params");
  if (grads == nullptr) return;
  require_buffer(grads, layout.size(), DType::f32, "grads");
  const std::size_t bytes = static_cast<std::size_t>(layout.size()) * sizeof(float);
  if (overlap(params, bytes, grads, bytes)) {
    fail("grads", "a buffer that overlaps params", "memory of its own");
  }
}

void copy_tokens(const TokenBatch& tokens, std::int64_t vocab_size, std::int64_t* out) {
  copy_ids(tokens, vocab_size, std::nullopt, "tokens", out);
}

std::int64_t copy_targets(const TokenBatch& targets, const TokenBatch& tokens,
                          std::int64_t vocab_size, std::int64_t ignore_index, std::int64_t* out) {
  if (targets.batch != tokens.batch || targets.length != tokens.length) {
    fail("targets", to_text(targets.batch) + " x " + to_text(targets.length),
         "the shape of tokens, " + to_text(tokens.batch) + " x " + to_text(tokens.length));
  }
  return copy_ids(targets, vocab_size, ignore_index, "targets", out);
}

}  // namespace flatstep
