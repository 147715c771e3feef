#pragma once

#include "core/backend.h"

namespace flatstep::cpu {

// See core/backend.h.
void start_loss(const LossTask& task, LossTotals* totals);
void cross_entropy(const CrossEntropyRows& rows, LossTotals* totals, void* workspace);
std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows, int threads);

}  // namespace flatstep::cpu
