#pragma once

#include "flatstep/loss.h"

namespace flatstep::cpu {

// See flatstep/loss.h; shapes, strides and options are checked, targets are checked here.
CrossEntropyResult cross_entropy(const ConstMatrix& logits, const IndexArray& targets,
                                 const CrossEntropyOptions& options,
                                 const CrossEntropyOutputs& outputs, void* workspace);

}  // namespace flatstep::cpu
