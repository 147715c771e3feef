// Numbers of 16 bits to f32 and back, with the kernels of the chosen instruction set.
#pragma once

#include "cpu/isa.h"
#include "flatstep/types.h"

namespace flatstep::cpu {

inline void widen(const void* from, DType dtype, std::int64_t size, float* to) {
  if (dtype == DType::bf16) {
    kernels().widen_bf16(static_cast<const bf16_bits*>(from), size, to);
  } else {
    kernels().widen_f16(static_cast<const f16_bits*>(from), size, to);
  }
}

inline void narrow(const float* from, std::int64_t size, void* to, DType dtype) {
  if (dtype == DType::bf16) {
    kernels().narrow_bf16(from, size, static_cast<bf16_bits*>(to));
  } else {
    kernels().narrow_f16(from, size, static_cast<f16_bits*>(to));
  }
}

}  // namespace flatstep::cpu
