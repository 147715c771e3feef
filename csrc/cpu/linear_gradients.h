// The gradients of a linear layer with many outputs, such as the logits of a large vocabulary: both
// products in one visit of the outputs' gradient.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tasks.h"

namespace flatstep::cpu {

// 0 where whole products are the better way, which a shape's width and classes decide.
std::size_t linear_gradients_workspace_bytes(std::int64_t rows, std::int64_t width,
                                             std::int64_t classes, int workers);

// False, and nothing is done, where whole products are the better way, and with accumulate_hidden.
bool linear_gradients(const LinearGradients& call, void* workspace);

}  // namespace flatstep::cpu
