// Checks of a batch of tokens and targets, before anything is written.
#pragma once

#include <cstdint>

#include "flatstep/gpt.h"

namespace flatstep {

// Throws InvalidArgument unless batch >= 1 and 1 <= length <= block_size.
void check_shape(const GptConfig& config, std::int64_t batch, std::int64_t length);

// params is a buffer; grads is one that does not overlap it, or null.
void check_buffers(const Layout& layout, const float* params, const float* grads);

// Throws OutOfRange for an id outside [0, vocab_size).
void check_id(std::int64_t id, std::int64_t vocab_size, const char* argument, std::int64_t row,
              std::int64_t position);

// Copies the ids as int64; throws OutOfRange for one outside [0, vocab_size).
void copy_tokens(const TokenBatch& tokens, std::int64_t vocab_size, std::int64_t* out);

// The same for targets, which may also hold ignore_index; returns how many do not.
std::int64_t copy_targets(const TokenBatch& targets, const TokenBatch& tokens,
                          std::int64_t vocab_size, std::int64_t ignore_index, std::int64_t* out);

}  // namespace flatstep
