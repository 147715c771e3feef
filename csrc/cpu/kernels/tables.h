// The parts that fill one instruction set's table; one function a kernel file.
#pragma once

#include "cpu/kernels/table.h"

namespace flatstep::cpu::FLATSTEP_ISA {

void fill_loss_kernels(KernelTable& table);
void fill_convert_kernels(KernelTable& table);
void fill_reduction_kernels(KernelTable& table);
void fill_optimizer_kernels(KernelTable& table);
void fill_low_bit_kernels(KernelTable& table);
void fill_dropout_kernels(KernelTable& table);
void fill_gemm_kernels(KernelTable& table);

// Everything above; the isa member is the caller's.
void fill(KernelTable& table);

}  // namespace flatstep::cpu::FLATSTEP_ISA
