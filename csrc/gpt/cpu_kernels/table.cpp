#include "gpt/cpu_kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {

void fill(GptKernelTable& table) {
  fill_attention_kernels(table);
  fill_layer_norm_kernels(table);
  fill_activation_kernels(table);
  fill_decode_kernels(table);
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
