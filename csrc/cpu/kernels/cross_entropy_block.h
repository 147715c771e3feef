// The loops over one block of classes: sums of exponentials, gradient. The formulae are in
// flatstep/loss.h.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/kernels/bfloat16_store.h"
#include "cpu/kernels/cross_entropy_lanes.h"
#include "cpu/kernels/exponential.h"
#include "element/cross_entropy_unit.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr std::int64_t kBlock = CrossEntropyBlock::kClasses;

// How far the logits that are fetched lie behind those that are read ahead: to the nearest cache,
// by bytes. It has few requests under way (16 on an Intel Xeon), too few for memory's latency: what
// it asks for should have reached the second, or it holds up all that follows. There the logits are
// fetched that follow the group's, or its gradient would hold up memory.
constexpr std::int64_t kPrefetchNear = 2048;
constexpr std::int64_t kPrefetchFar = CrossEntropyGroup::kElements + kBlock;
constexpr std::int64_t kCacheLine = 64;

// Fetches what lies behind `count` logits at p. Always inlined: GCC takes a function that only
// prefetches for one without effects, and leaves out its calls.
template <class T>
__attribute__((always_inline)) inline void prefetch(const T* p, std::int64_t count) {
  const auto* bytes = reinterpret_cast<const char*>(p);
  const auto* far = reinterpret_cast<const char*>(p + kPrefetchFar);
  const std::int64_t size = count * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t i = 0; i < size; i += kCacheLine) __builtin_prefetch(bytes + i + kPrefetchNear);
  for (std::int64_t i = 0; i < size; i += kCacheLine) __builtin_prefetch(far + i, 0, 2);
}

enum class Smoothing { none, uniform, weighted };

// One block of a row: what is read and kept.
template <class T>
struct BlockPlace {
  using A = Accumulate<T>;
  const T* x;
  const T* next;  // as many logits, whose range is asked for; x if none are
  std::int64_t size;
  A* exponentials;  // null: not kept
  A* slopes;        // null: not kept; filled by sum_split
  const A* weights;
  double weight_sum;  // of the block's classes, masked or not; 1 is the weight without weights
};

template <class A>
struct LaneSums {
  using V = Vector<A>;
  V total{}, rest{}, weighted{}, logits{}, allowed{}, unmasked{};
};

// When smoothing, whether a block may have masked classes, whose logit is -inf, or exponentials
// that are 0. Most have neither, and take less time.
enum class Masked { none, some };

// The sum over the classes below the maximum is apart, since beside the maximum the small terms
// would lose their digits: whether it is made along with the others, or by rest_of_block in the few
// blocks where it counts.
enum class Rest { now, later };

// Fills `sums`, keeps the exponentials, and returns the range of the logits at `next`: reading
// the next block here overlaps with the arithmetic, and what comes after it is prefetched. When
// smoothing, a masked class keeps -1, which tells it from one that underflowed. With Split the
// logits are x + low, and nothing is next.
template <Smoothing kSmoothing, Masked kMasked, bool Split, Rest kRest, class T>
Range<Accumulate<T>> sum_block(const BlockPlace<T>& place, Accumulate<T> largest,
                               CrossEntropyBlock& sums, const Accumulate<T>* low = nullptr) {
  using A = Accumulate<T>;
  using V = Vector<A>;
  constexpr bool kSmooth = kSmoothing != Smoothing::none;
  constexpr bool kMask = kSmooth && kMasked == Masked::some;
  constexpr std::int64_t kLanes = kLanesOf<A>;
  // A copy, because the stores below might overwrite what a reference refers to.
  const BlockPlace<T> block = place;
  const Unit<A> unit(largest);
  const std::int64_t size = block.size;
  const V minus_infinity = splat<V>(-kInfinite<A>);
  const V maximum = splat<V>(largest);
  const V reference = splat<V>(largest == -kInfinite<A> ? A(0) : largest);
  const V cutoff = splat<V>(unit.cutoff());
  const auto bias = unit.bias();

  // -> what is kept
  const auto add = [&](std::int64_t j, V x, auto whole,
                       LaneSums<A>& lanes) __attribute__((always_inline)) {
    const auto load = [&](const A* array) {
      return whole ? load_vector(array + j) : load_part(array + j, size - j, V{});
    };
    // Without masked classes nothing is below the cutoff, and 0 times a distance is 0.
    const bool all = kSmooth && !kMask && whole;
    const auto inside = at_least(x, cutoff);
    V e = exp_of_lanes(x, bias);
    if (!all) e = keep(inside, e);
    if (Split) e = multiply_add(e, load(low), e);
    lanes.total += e;
    if (kRest == Rest::now) lanes.rest = add_where(below_or_nan(x, maximum), lanes.rest, e);
    const V below = x - reference;
    lanes.weighted = multiply_add(e, all ? below : keep(inside, below), lanes.weighted);
    if (kSmooth) {
      // The lanes behind the last class are masked, too.
      V distance = below;
      if (kMask || !whole) distance = x == minus_infinity ? V{} : below;
      if (kSmoothing == Smoothing::weighted) {
        const V weight = load(block.weights);
        lanes.logits = multiply_add(weight, distance, lanes.logits);
        if (kMask) lanes.allowed += x == minus_infinity ? V{} : weight;
      } else {
        lanes.logits += distance;
      }
    }
    if (kMask) {
      lanes.unmasked += x == minus_infinity ? V{} : splat<V>(A(1));
      e = x == minus_infinity ? splat<V>(A(-1)) : e;
    }
    return e;
  };

  LaneSums<A> even, odd;
  RangeLanes<T, kSmooth> even_ahead, odd_ahead;
  std::int64_t j = 0;
  for (; j + 2 * kLanes <= size; j += 2 * kLanes) {
    // In this order: logits that are loaded behind the prefetches take a tenth longer.
    V first, second;
    Element<T>::load_pair(block.x + j, first, second);
    first = held(first);
    second = held(second);
    if (!Split) {
      prefetch(block.next + j, 2 * kLanes);
      V next_first, next_second;
      Element<T>::load_in_any_order(block.next + j, next_first, next_second);
      even_ahead.take(next_first);
      odd_ahead.take(next_second);
    }
    const V first_e = add(j, first, std::true_type{}, even);
    const V second_e = add(j + kLanes, second, std::true_type{}, odd);
    if (block.exponentials == nullptr) continue;
    store_vector<A>(block.exponentials + j, first_e);
    store_vector<A>(block.exponentials + j + kLanes, second_e);
  }
  if (j + kLanes <= size) {
    if (!Split) even_ahead.take(Element<T>::load_lanes(block.next + j));
    const V e = add(j, Element<T>::load_lanes(block.x + j), std::true_type{}, even);
    if (block.exponentials != nullptr) store_vector<A>(block.exponentials + j, e);
    j += kLanes;
  }
  if (j < size) {
    const V x = Element<T>::load_some(block.x + j, size - j, minus_infinity);
    if (!Split) {
      const V first = splat<V>(Element<T>::load(block.next[j]));
      odd_ahead.take(Element<T>::load_some(block.next + j, size - j, first));
    }
    const V e = add(j, x, std::false_type{}, odd);
    if (block.exponentials != nullptr) store_part(block.exponentials + j, size - j, e);
  }

  const Vector<double> lanes[] = {
      in_double(even.total + odd.total), in_double(even.weighted + odd.weighted),
      in_double(even.logits + odd.logits), in_double(even.rest + odd.rest)};
  double four[4];
  sum_lanes(lanes, four);
  sums.total = four[0];
  sums.weighted = four[1];
  sums.logits = four[2];
  sums.rest = four[3];
  sums.unmasked = size;
  sums.allowed = block.weight_sum;
  if (kMask) {
    const Vector<double> masked[] = {in_double(even.unmasked + odd.unmasked),
                                     in_double(even.allowed + odd.allowed)};
    double two[2];
    sum_lanes(masked, two);
    sums.unmasked = static_cast<std::int64_t>(two[0]);
    if (Split || sums.unmasked < size) {
      sums.allowed = kSmoothing == Smoothing::weighted ? two[1] : two[0];
    }
  }
  even_ahead.take(odd_ahead);
  return even_ahead.range();
}

// The sum over the classes below the maximum, from the exponentials that were kept: those of masked
// classes are 0 or -1. One that equals the maximum's counts as its.
template <class A>
double rest_of_block(const A* exponentials, std::int64_t size, A maximum) {
  using V = Vector<A>;
  constexpr std::int64_t kLanes = kLanesOf<A>;
  const V top = exp_of_lanes(splat<V>(maximum), Unit<A>(maximum).bias());
  V even{}, odd{};
  const auto add = [&](V e, V& sum) { sum = add_where(below_or_nan(e, top), sum, larger(V{}, e)); };
  std::int64_t j = 0;
  for (; j + 2 * kLanes <= size; j += 2 * kLanes) {
    add(load_vector(exponentials + j), even);
    add(load_vector(exponentials + j + kLanes), odd);
  }
  if (j + kLanes <= size) {
    add(load_vector(exponentials + j), even);
    j += kLanes;
  }
  if (j < size) add(load_part(exponentials + j, size - j, V{}), odd);
  const Vector<double> lanes[] = {in_double(even + odd)};
  double sum[1];
  sum_lanes(lanes, sum);
  return sum[0];
}

// grad = (e factor - spread w) slope; 0 for masked classes, whose e is -1 when smoothing.
template <Smoothing kSmoothing, Masked kMasked, bool Capped, class T, class A>
void gradient_block(const A* exponentials, std::int64_t size, A factor, A spread, const A* weights,
                    const A* slopes, T* grad) {
  using V = Vector<A>;
  constexpr std::int64_t kLanes = kLanesOf<A>;
  constexpr bool kSmooth = kSmoothing != Smoothing::none;
  // By value: what is captured by reference would be read again after every store.
  const auto gradient = [=](std::int64_t j, std::int64_t count) __attribute__((always_inline)) {
    const auto lanes = [=](const A* array) {
      return count >= kLanes ? load_vector(array + j) : load_part(array + j, count, V{});
    };
    const V e = lanes(exponentials);
    V result = e * factor;
    if (kSmooth) {
      V share = splat<V>(spread);
      if (kSmoothing == Smoothing::weighted) share = spread * lanes(weights);
      result = multiply_add(e, splat<V>(factor), -share);
      if (kMasked == Masked::some) result = e == splat<V>(A(-1)) ? V{} : result;
    }
    return Capped ? result * lanes(slopes) : result;
  };
  std::int64_t j = 0;
  if constexpr (std::is_same_v<T, bf16_bits>) {
    // Shorter blocks lose more at their ends than they gain.
    if (size >= 256) j = store_normal(size, gradient, grad);
  }
  for (; j + 2 * kLanes <= size; j += 2 * kLanes) {
    Element<T>::store_pair(grad + j, gradient(j, kLanes), gradient(j + kLanes, kLanes));
  }
  for (; j + kLanes <= size; j += kLanes) {
    Element<T>::store_lanes(grad + j, gradient(j, kLanes));
  }
  if (j < size) Element<T>::store_some(grad + j, size - j, gradient(j, size - j));
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
