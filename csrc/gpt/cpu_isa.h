// The Transformer's CPU kernels of the instruction set in use.
#pragma once

#include "gpt/cpu_kernels/table.h"

namespace flatstep::cpu {

const GptKernelTable& gpt_kernels();

}  // namespace flatstep::cpu
