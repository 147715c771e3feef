#pragma once

#include "core/backend.h"

namespace flatstep::cpu {

// See core/backend.h.
TargetTotals check_targets(const IndexArray& targets, std::int64_t classes, DType weight_dtype,
                           const CrossEntropyOptions& options);
std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows, int threads);
CrossEntropySums cross_entropy(const CrossEntropyRows& rows, void* workspace);

}  // namespace flatstep::cpu
