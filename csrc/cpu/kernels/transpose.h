// Blocks of 4 x 4 floats, transposed in registers. Included only by files that are compiled once
// per instruction set.
#pragma once

#include <cstring>

#include "cpu/kernels/vector.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

typedef float Four __attribute__((vector_size(16)));
[[maybe_unused]] typedef int FourIndices __attribute__((vector_size(16)));

// Elements of two vectors in the order of the indices, which count through both.
#if defined(__clang__)
#  define FLATSTEP_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#  define FLATSTEP_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, FourIndices{i, j, k, l})
#endif

// to[j * to_step + i] = from[i * from_step + j] for i, j < 4.
inline void transpose_four(const float* from, std::int64_t from_step, float* to,
                           std::int64_t to_step) {
  Four row[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&row[i], from + i * from_step, sizeof(Four));
  const Four a = FLATSTEP_SHUFFLE(row[0], row[2], 0, 4, 1, 5);
  const Four b = FLATSTEP_SHUFFLE(row[1], row[3], 0, 4, 1, 5);
  const Four c = FLATSTEP_SHUFFLE(row[0], row[2], 2, 6, 3, 7);
  const Four d = FLATSTEP_SHUFFLE(row[1], row[3], 2, 6, 3, 7);
  const Four column[4] = {FLATSTEP_SHUFFLE(a, b, 0, 4, 1, 5), FLATSTEP_SHUFFLE(a, b, 2, 6, 3, 7),
                          FLATSTEP_SHUFFLE(c, d, 0, 4, 1, 5), FLATSTEP_SHUFFLE(c, d, 2, 6, 3, 7)};
  for (int j = 0; j < 4; ++j) std::memcpy(to + j * to_step, &column[j], sizeof(Four));
}

#undef FLATSTEP_SHUFFLE

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
