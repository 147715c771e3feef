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

// Exchanges the lanes of `upper` that have kHalf in their number with those of `lower` that do not.
template <int kHalf>
inline __attribute__((always_inline)) void exchange_lanes(Vector<float>& upper,
                                                          Vector<float>& lower) {
  constexpr int kLanes = kLanesOf<float>;
  const Vector<float> a = upper, b = lower;
#if defined(__clang__)
  for (int j = 0; j < kLanes; ++j) {
    if (j & kHalf) {
      upper[j] = b[j ^ kHalf];
    } else {
      lower[j] = a[j ^ kHalf];
    }
  }
#else
  typedef int Indices __attribute__((vector_size(kVectorBytes)));
  Indices to_upper, to_lower;  // they count through both
  for (int j = 0; j < kLanes; ++j) {
    to_upper[j] = j & kHalf ? kLanes + (j ^ kHalf) : j;
    to_lower[j] = j & kHalf ? kLanes + j : j ^ kHalf;
  }
  upper = __builtin_shuffle(a, b, to_upper);
  lower = __builtin_shuffle(a, b, to_lower);
#endif
}

// Exchanges the blocks of kHalf x kHalf beside the diagonals of all blocks of 2 kHalf x 2 kHalf.
template <int kHalf>
inline __attribute__((always_inline)) void exchange_blocks(Vector<float> (&row)[kLanesOf<float>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanesOf<float>; ++i) {
    if (!(i & kHalf)) exchange_lanes<kHalf>(row[i], row[i | kHalf]);
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

template <int kHalf, class Combine>
inline __attribute__((always_inline)) void fold_blocks(Vector<float> (&row)[kLanesOf<float>],
                                                       const Combine& combine) {
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i) {
    exchange_lanes<kHalf>(row[i], row[i + kHalf]);
    row[i] = combine(row[i], row[i + kHalf]);
  }
}

// In lane i, all lanes of row[i] combined: half of a transposition's work. `row` is used up.
template <class Combine>
inline Vector<float> combine_lanes(Vector<float> (&row)[kLanesOf<float>], const Combine& combine) {
  if constexpr (kLanesOf<float> >= 16) fold_blocks<8>(row, combine);
  if constexpr (kLanesOf<float> >= 8) fold_blocks<4>(row, combine);
  fold_blocks<2>(row, combine);
  fold_blocks<1>(row, combine);
  return row[0];
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
