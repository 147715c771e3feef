// Sums over the blocks of a group's rows: where a block lies, what is read ahead of it, and which
// of the loops takes it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/kernels/cross_entropy_block.h"
#include "cpu/kernels/cross_entropy_shift.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

inline std::int64_t block_count(std::int64_t classes) { return (classes + kBlock - 1) / kBlock; }

// Calls body(std::integral_constant<Smoothing, ...>).
template <class Body>
void with_smoothing(const CrossEntropyRows& rows, const Body& body) {
  if (rows.label_smoothing == 0) {
    body(std::integral_constant<Smoothing, Smoothing::none>{});
  } else if (rows.class_weight == nullptr) {
    body(std::integral_constant<Smoothing, Smoothing::uniform>{});
  } else {
    body(std::integral_constant<Smoothing, Smoothing::weighted>{});
  }
}

template <class T>
const T* logits_of(const CrossEntropyRows& rows, std::int64_t row) {
  return static_cast<const T*>(rows.logits) + row * rows.row_stride;
}

// Where row i of the group keeps its exponentials: the gradient itself if it has their type.
template <class T>
Accumulate<T>* exponentials_of(const CrossEntropyRows& rows, const CrossEntropyGroup& group, int i,
                               const CrossEntropyScratch& scratch) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    return static_cast<T*>(rows.grad) + group.row[i] * rows.grad_row_stride;
  } else {
    return static_cast<float*>(scratch.exponentials) + i * rows.classes;
  }
}

template <class T>
Accumulate<T>* slopes_of(const CrossEntropyRows& rows, int i, const CrossEntropyScratch& scratch) {
  if (rows.grad == nullptr || rows.softcap == 0) return nullptr;
  return static_cast<Accumulate<T>*>(scratch.slopes) + i * rows.classes;
}

template <Smoothing kSmoothing, class T>
void fill_weights(const CrossEntropyRows& rows, const CrossEntropyScratch& scratch,
                  std::int64_t index, BlockPlace<T>& place) {
  if (kSmoothing == Smoothing::weighted) {
    place.weights = static_cast<const Accumulate<T>*>(rows.class_weight) + index * kBlock;
    place.weight_sum = scratch.weight_sums[index];
  } else if (kSmoothing == Smoothing::uniform) {
    place.weight_sum = static_cast<double>(place.size);
  }
}

// Whether logits cannot be summed where they are: with softcap, or too large.
template <class A>
bool is_split(const CrossEntropyRows& rows, A maximum) {
  return rows.softcap > 0 || !Unit<A>::in_range(maximum);
}

// They are put into a buffer as their distance from the block's maximum, which becomes the shift of
// the unit.
template <Smoothing kSmoothing, class T>
__attribute__((noinline)) void sum_split(const CrossEntropyRows& rows, const BlockPlace<T>& place,
                                         CrossEntropyBlock& block) {
  using A = Accumulate<T>;
  alignas(kVectorBytes) A high[kBlock], low[kBlock], slopes[kBlock];
  const std::int64_t size = place.size;
  const bool masked = block.largest == -kInfinite<double>;
  if (rows.softcap > 0) {
    const Softcap softcap(rows.softcap, rows.dtype);
    double slope;
    if (!masked) block.maximum = cap(block.largest, softcap, slope);
    cap_block(place.x, size, softcap, block.maximum, high, low, slopes);
    if (place.slopes != nullptr) std::copy(slopes, slopes + size, place.slopes);
  } else {
    shift_block(place.x, size, block.maximum, high, low);
  }
  block.shift = block.maximum;
  block.exponent = 0;
  const A top = masked ? -kInfinite<A> : A(0);
  sum_block<kSmoothing, Masked::some, true, Rest::now, A>(
      {high, high, size, place.exponentials, nullptr, place.weights, 0.0}, top, block, low);
}

// Fills all of `block` but the ties. Takes the range of its logits, and returns that of the next.
template <Smoothing kSmoothing, Rest kRest, class T>
Range<Accumulate<T>> sum_one(const CrossEntropyRows& rows, const BlockPlace<T>& place,
                             Range<Accumulate<T>> range, CrossEntropyBlock& block) {
  using A = Accumulate<T>;
  const A maximum = range.largest;
  block.largest = block.maximum = static_cast<double>(maximum);
  if (is_split(rows, maximum)) {
    sum_split<kSmoothing>(rows, place, block);
    return place.next == place.x ? range : range_of(place.next, place.size);
  }
  const Unit<A> unit(maximum);
  block.shift = 0;
  block.exponent = unit.exponent;
  if (kSmoothing != Smoothing::none && range.smallest < unit.cutoff()) {
    return sum_block<kSmoothing, Masked::some, false, kRest>(place, maximum, block);
  }
  return sum_block<kSmoothing, Masked::none, false, kRest>(place, maximum, block);
}

// Classes before the target with its logit, in a block that begins with class `first`.
template <class T>
std::int64_t ties_of(const CrossEntropyGroup& group, int i, std::int64_t first, const T* x,
                     std::int64_t size, Accumulate<T> maximum) {
  if (maximum != static_cast<Accumulate<T>>(group.target_logit[i])) return 0;
  const std::int64_t before = group.target[i] - first;
  return before > 0 ? count_equal(x, std::min(size, before), maximum) : 0;
}

// Row i of the group, some of its blocks. The range of a block is found while the one before it is
// summed.
template <Smoothing kSmoothing, Rest kRest, class T>
void sum_row(const CrossEntropyRows& rows, const CrossEntropyGroup& group, int i,
             std::int64_t begin, std::int64_t end, const CrossEntropyScratch& scratch) {
  using A = Accumulate<T>;
  alignas(kVectorBytes) A own[kBlock];
  const T* logits = logits_of<T>(rows, group.row[i]);
  A* exponentials = rows.grad ? exponentials_of<T>(rows, group, i, scratch) : nullptr;
  A* slopes = slopes_of<T>(rows, i, scratch);
  CrossEntropyBlock* blocks = scratch.blocks + i * block_count(rows.classes);
  Range<A> range{};
  bool known = false;
  double largest = -kInfinite<double>;
  for (std::int64_t index = begin; index < end; ++index) {
    CrossEntropyBlock& block = blocks[index];
    const std::int64_t first = index * kBlock;
    BlockPlace<T> place{};
    place.x = place.next = logits + first;
    place.size = std::min(kBlock, rows.classes - first);
    place.exponentials = exponentials ? exponentials + first : kRest == Rest::later ? own : nullptr;
    place.slopes = slopes ? slopes + first : nullptr;
    fill_weights<kSmoothing>(rows, scratch, index, place);
    if (!known) range = range_of(place.x, place.size);
    const A maximum = range.largest;
    block.ties = ties_of(group, i, first, place.x, place.size, maximum);
    known = index + 1 < end && rows.classes - first >= 2 * kBlock;
    if (known) place.next += kBlock;
    range = sum_one<kSmoothing, kRest>(rows, place, range, block);
    if (kRest == Rest::now || block.maximum < largest) continue;
    largest = block.maximum;
    if (is_split(rows, maximum)) continue;
    block.rest = rest_of_block(place.exponentials, place.size, maximum);
  }
}

// All rows of the group, each of them a single block. The range of a row is found while the second
// before it is summed: the next one would wait for it.
template <Smoothing kSmoothing, class T>
void sum_short_rows(const CrossEntropyRows& rows, const CrossEntropyGroup& group,
                    const CrossEntropyScratch& scratch) {
  using A = Accumulate<T>;
  const auto* logits = static_cast<const T*>(rows.logits);
  const std::int64_t stride = rows.row_stride;
  BlockPlace<T> place{};
  place.size = rows.classes;
  fill_weights<kSmoothing>(rows, scratch, 0, place);
  Range<A> ahead[2] = {};
  for (int i = 0; i < std::min(2, group.rows); ++i) {
    ahead[i] = range_of(logits + group.row[i] * stride, place.size);
  }
  for (int i = 0; i < group.rows; ++i) {
    const Range<A> range = ahead[0];
    ahead[0] = ahead[1];
    place.x = logits + group.row[i] * stride;
    place.next = i + 2 < group.rows ? logits + group.row[i + 2] * stride : place.x;
    if (rows.grad != nullptr) {
      place.exponentials = exponentials_of<T>(rows, group, i, scratch);
      place.slopes = slopes_of<T>(rows, i, scratch);
    }
    CrossEntropyBlock& block = scratch.blocks[i];
    block.ties = ties_of(group, i, 0, place.x, place.size, range.largest);
    ahead[1] = sum_one<kSmoothing, Rest::now>(rows, place, range, block);
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
