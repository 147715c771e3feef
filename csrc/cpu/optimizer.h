#pragma once

#include "core/backend.h"

namespace flatstep::cpu {

// See Backend.
void update(const UpdateTask& task, const GradPartials& chunks);

}  // namespace flatstep::cpu
