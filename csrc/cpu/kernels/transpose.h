// Square blocks of floats, transposed in registers. Included only by files that are compiled once
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

// Exchanges the blocks of kHalf x kHalf beside the diagonals of all blocks of 2 kHalf x 2 kHalf.
template <int kHalf>
inline __attribute__((always_inline)) void exchange_blocks(Vector<float> (&row)[kLanesOf<float>]) {
  constexpr int kLanes = kLanesOf<float>;
#if !defined(__clang__)
  typedef int Indices __attribute__((vector_size(kVectorBytes)));
  Indices upper, lower;  // they count through both rows
  for (int j = 0; j < kLanes; ++j) {
    upper[j] = j & kHalf ? kLanes + (j ^ kHalf) : j;
    lower[j] = j & kHalf ? kLanes + j : j ^ kHalf;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kHalf) continue;
    const Vector<float> a = row[i], b = row[i | kHalf];
#if defined(__clang__)
    for (int j = 0; j < kLanes; ++j) {
      if (j & kHalf) {
        row[i][j] = b[j ^ kHalf];
      } else {
        row[i | kHalf][j] = a[j ^ kHalf];
      }
    }
#else
    row[i] = __builtin_shuffle(a, b, upper);
    row[i | kHalf] = __builtin_shuffle(a, b, lower);
#endif
  }
}

// The same for as many rows and columns as a vector has lanes (Eklundh 1972).
inline void transpose_vectors(const float* from, std::int64_t from_step, float* to,
                              std::int64_t to_step) {
  constexpr int kLanes = kLanesOf<float>;
  Vector<float> row[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) row[i] = load_vector(from + i * from_step);
  if constexpr (kLanes >= 16) exchange_blocks<8>(row);
  if constexpr (kLanes >= 8) exchange_blocks<4>(row);
  exchange_blocks<2>(row);
  exchange_blocks<1>(row);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store_vector(to + i * to_step, row[i]);
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
