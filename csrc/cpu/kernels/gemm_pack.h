// Packing of a matrix product's operands into panels: for each step of k, the elements of the
// panel's rows or columns lie side by side. Included only by files that are compiled once per
// instruction set.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/kernels/element.h"
#include "cpu/kernels/transpose.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr int kWidth = kLanesOf<float>;
constexpr std::int64_t kLine = 16;  // floats in a line of the cache
constexpr std::int64_t kPackStretch = 64;
constexpr std::int64_t kRowsAhead = 8;
constexpr std::int64_t kBlocksAhead = 4;

// packed[p * Panel + r] = x[r * step_r + p] for a whole panel of whole vectors.
template <int Panel>
void pack_transposed(const float* x, std::int64_t step_r, std::int64_t depth, float* packed) {
  const std::int64_t whole = depth / kWidth * kWidth;
  for (std::int64_t p = 0; p < whole; p += kWidth) {
    for (int r = 0; r < Panel; r += kWidth) {
      const float* rows = x + r * step_r + p;
      for (int i = 0; i < kWidth; ++i)
        __builtin_prefetch(rows + i * step_r + kBlocksAhead * kWidth);
      transpose_vectors(rows, step_r, packed + p * Panel + r, Panel);
    }
  }
  for (std::int64_t p = whole; p < depth; ++p) {
    for (int r = 0; r < Panel; ++r) packed[p * Panel + r] = x[r * step_r + p];
  }
}

// packed[p * Panel + r] = x[r * step_r + p * step_p] for r < valid, else 0. One of the steps is 1.
template <int Panel>
void pack_panel(const float* x, std::int64_t step_r, std::int64_t step_p, std::int64_t valid,
                std::int64_t depth, float* packed) {
  if constexpr (Panel % kWidth == 0) {
    if (step_p == 1 && valid == Panel) {
      pack_transposed<Panel>(x, step_r, depth, packed);
      return;
    }
  }
  const std::int64_t whole_rows = step_p == 1 ? valid / 4 * 4 : 0;
  // A short stretch of k at a time, so that the lines being filled stay in the nearest cache.
  for (std::int64_t begin = 0; begin < depth; begin += kPackStretch) {
    const std::int64_t end = std::min(depth, begin + kPackStretch);
    const std::int64_t whole = begin + (end - begin) / 4 * 4;
    for (std::int64_t r = 0; r < whole_rows; r += 4) {
      const float* rows = x + r * step_r;
      for (int i = 0; i < 4 && end < depth; ++i) {  // what the next stretch will read
        for (int line = 0; line < kPackStretch; line += 16) {
          __builtin_prefetch(rows + i * step_r + end + line);
        }
      }
      for (std::int64_t p = begin; p < whole; p += 4) {
        transpose_four(rows + p, step_r, packed + p * Panel + r, Panel);
      }
      for (std::int64_t p = whole; p < end; ++p) {
        for (int i = 0; i < 4; ++i) packed[p * Panel + r + i] = rows[i * step_r + p];
      }
    }
    for (std::int64_t r = whole_rows; r < Panel; ++r) {
      for (std::int64_t p = begin; p < end; ++p) {
        packed[p * Panel + r] = r < valid ? x[r * step_r + p * step_p] : 0.0f;
      }
    }
  }
}

// The same for 16-bit numbers: a stretch at a time is converted, then packed.
template <int Panel, class T>
void pack_panel(const T* x, std::int64_t step_r, std::int64_t step_p, std::int64_t valid,
                std::int64_t depth, float* packed) {
  constexpr std::int64_t kStretch = 128;
  float converted[Panel * kStretch];
  if (step_r == 1) {
    for (std::int64_t p = 0; p < depth; ++p) {
      float* to = packed + p * Panel;
      for (std::int64_t r = 0; r < valid; ++r) to[r] = Element<T>::load(x[p * step_p + r]);
      std::fill(to + valid, to + Panel, 0.0f);
    }
    return;
  }
  for (std::int64_t begin = 0; begin < depth; begin += kStretch) {
    const std::int64_t size = std::min(kStretch, depth - begin);
    for (std::int64_t r = 0; r < valid; ++r) {
      const T* from = x + r * step_r + begin * step_p;
      for (std::int64_t p = 0; p < size; ++p) {
        converted[r * kStretch + p] = Element<T>::load(from[p * step_p]);
      }
    }
    pack_panel<Panel>(converted, kStretch, 1, valid, size, packed + begin * Panel);
  }
}

// Whole panels of a matrix whose rows hold the elements of one p: row by row, so that memory is
// read in its order.
template <int Panel>
void pack_rows(const float* x, std::int64_t step_p, std::int64_t panels, std::int64_t depth,
               float* packed) {
  for (std::int64_t p = 0; p < depth; ++p) {
    const float* from = x + p * step_p;
    float* to = packed + p * Panel;
    for (std::int64_t i = 0; i < panels; ++i, from += Panel, to += Panel * depth) {
      __builtin_prefetch(from + kRowsAhead * step_p);
      __builtin_prefetch(from + kRowsAhead * step_p + kLine);
      std::memcpy(to, from, Panel * sizeof(float));
    }
  }
}

// Panels of x for `count` rows or columns of the product from `first` on.
template <int Panel>
void pack(const void* x, DType type, std::int64_t step_r, std::int64_t step_p, std::int64_t first,
          std::int64_t count, std::int64_t depth_begin, std::int64_t depth, float* packed) {
  const auto pack_typed = [&](const auto* typed, std::int64_t begin) {
    for (std::int64_t i = begin; i < count; i += Panel) {
      pack_panel<Panel>(typed + (first + i) * step_r + depth_begin * step_p, step_r, step_p,
                        std::min<std::int64_t>(Panel, count - i), depth, packed + i * depth);
    }
  };
  if (type == DType::bf16) {
    pack_typed(static_cast<const bf16_bits*>(x), 0);
  } else if (type == DType::f16) {
    pack_typed(static_cast<const f16_bits*>(x), 0);
  } else {
    const auto* floats = static_cast<const float*>(x);
    const std::int64_t panels = step_r == 1 ? count / Panel : 0;
    pack_rows<Panel>(floats + first + depth_begin * step_p, step_p, panels, depth, packed);
    pack_typed(floats, panels * Panel);
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
