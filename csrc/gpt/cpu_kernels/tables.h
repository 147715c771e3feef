#pragma once

#include "gpt/cpu_kernels/table.h"

namespace flatstep::cpu::FLATSTEP_ISA {

void fill_attention_kernels(GptKernelTable& table);
void fill_layer_norm_kernels(GptKernelTable& table);
void fill_activation_kernels(GptKernelTable& table);
void fill_decode_kernels(GptKernelTable& table);

// Everything above.
void fill(GptKernelTable& table);

}  // namespace flatstep::cpu::FLATSTEP_ISA
