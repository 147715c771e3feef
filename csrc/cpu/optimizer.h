#pragma once

#include <vector>

#include "core/backend.h"

namespace flatstep::cpu {

GradNorm grad_norm(const std::vector<const void*>& grads, DType dtype, ChunkTable& chunks);
GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype, const ChunkTable& chunks,
                      double limit);
void scale(const std::vector<void*>& grads, DType dtype, const ChunkTable& chunks, double factor);
void update(const UpdateTask& task, const ChunkTable& chunks);

}  // namespace flatstep::cpu
