#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {

void fill(KernelTable& table) {
  fill_loss_kernels(table);
  fill_convert_kernels(table);
  fill_reduction_kernels(table);
  fill_optimizer_kernels(table);
  fill_low_bit_kernels(table);
  fill_dropout_kernels(table);
  fill_gemm_kernels(table);
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
