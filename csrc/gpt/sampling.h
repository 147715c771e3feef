// How a token is drawn from the logits of the last position.
#pragma once

#include <cstdint>

#include "flatstep/gpt.h"

namespace flatstep {

// Throws InvalidArgument naming the option that is out of range.
void check_options(const SampleOptions& options);

// Draws from softmax(logits / temperature) over the tokens that top_k and top_p leave; the random
// number is a function of (seed, position). order and weights: scratch for `size` elements.
// Returns -1 where the logits are no distribution: one is NaN, or the largest is not
// finite.
std::int64_t draw(const float* logits, std::int64_t size, const SampleOptions& options,
                  std::uint64_t seed, std::int64_t position, std::int64_t* order, double* weights);

}  // namespace flatstep
