#include <algorithm>
#include <cstring>

#include "core/checks.h"
#include "flatstep/gpt.h"
#include "gpt/batch.h"
#include "gpt/decoder.h"
#include "gpt/sampling.h"

namespace flatstep {
namespace {

void check_room(std::int64_t batch, std::int64_t capacity) {
  require(batch >= 1, "tokens", batch, "a batch of at least 1");
  require(capacity >= 1, "tokens", capacity, "at least one token to go on from");
}

void check_sequences(const GptConfig& config, const Generation& s, std::int64_t n_new) {
  check_room(s.batch, s.capacity);
  require(s.length >= 1, "tokens", s.length, "at least one token to go on from");
  require(n_new >= 0, "n", n_new, "a number of tokens >= 0");
  if (n_new > s.capacity - s.length) {
    fail("n", to_text(n_new),
         "at most the room in the sequences, " + to_text(s.capacity - s.length));
  }
  if (s.cached < 0 || s.cached > std::min(s.length, config.block_size)) {
    fail("cached", to_text(s.cached), "what the call before has left, or 0");
  }
  require_buffer(s.ids, s.batch * s.capacity, DType::i64, "tokens");
  if (s.cached > 0) return;  // the call before has seen them
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t t = 0; t < s.length; ++t) {
      check_id(s.ids[b * s.capacity + t], config.vocab_size, "tokens", b, t);
    }
  }
}

// Draws the next token of each row, or throws before it changes any.
void append(const GptConfig& config, Generation& s, const SampleOptions& options,
            const DecoderSpace& space) {
  const std::int64_t v = config.vocab_size;
  cpu::decode_ops().for_each(s.batch, [&](std::int64_t b) {
    space.drawn[b] =
        draw(space.logits + b * v, v, options, options.seed + static_cast<std::uint64_t>(b),
             s.length, space.order + b * v, space.weights + b * v);
  });
  for (std::int64_t b = 0; b < s.batch; ++b) {
    if (space.drawn[b] >= 0) continue;
    throw RuntimeFailure("logits: got NaN or no finite maximum for row " + std::to_string(b) +
                         ", position " + std::to_string(s.length) + ", expected finite parameters");
  }
  for (std::int64_t b = 0; b < s.batch; ++b) s.ids[b * s.capacity + s.length] = space.drawn[b];
  ++s.length;
}

}  // namespace

std::size_t Gpt::generation_workspace_bytes(std::int64_t batch, std::int64_t capacity) const {
  check_room(batch, capacity);
  return DecoderSpace(config_, batch, std::min(config_.block_size, capacity), nullptr).bytes;
}

void Gpt::generate(const float* params, Generation& sequences, std::int64_t n_new,
                   const SampleOptions& options, void* workspace, std::size_t workspace_bytes,
                   float* logits) const {
  check_buffers(layout_, params, nullptr);
  check_options(options);
  check_sequences(config_, sequences, n_new);
  require_buffer(logits, 0, DType::f32, "logits");
  Generation& s = sequences;
  const std::int64_t longest = std::min(config_.block_size, s.capacity);
  // Inside, the number of threads is fixed, and with it the size of the workspace.
  cpu::gpt_ops().together([&] {
    require_workspace(workspace, workspace_bytes,
                      DecoderSpace(config_, s.batch, longest, nullptr).bytes);
    DecoderSpace space(config_, s.batch, longest, workspace);
    const Decoder decoder(config_, layout_, params, space);
    for (const std::int64_t end = s.length + n_new; s.length < end;) {
      const std::int64_t context = std::min(s.length, config_.block_size);
      if (s.cached > 0 && s.cached == s.length - 1 && context == s.length) {
        decoder.advance(s.ids, s.capacity, s.batch, s.length);
      } else {
        decoder.refill(s.ids, s.capacity, s.batch, s.length, context);
      }
      s.cached = context;
      if (logits != nullptr) {
        std::memcpy(logits, space.logits,
                    static_cast<std::size_t>(s.batch * config_.vocab_size) * sizeof(float));
      }
      append(config_, s, options, space);
    }
  });
}

}  // namespace flatstep
