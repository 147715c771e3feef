// The loops over one block of classes: maximum, softcap, sums of exponentials, gradient. The
// formulae are in flatstep/loss.h.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/kernels/element.h"
#include "cpu/kernels/math.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

constexpr std::int64_t kBlock = CrossEntropyBlock::kClasses;

// Logits between those that are read ahead and those that are prefetched.
constexpr std::int64_t kPrefetch = 2048;

template <class T>
using Accumulate = typename Element<T>::Accumulate;

template <class A>
constexpr A kInfinite = std::numeric_limits<A>::infinity();

enum class Smoothing { none, uniform, weighted };

// The exponentials of a block are taken in units of exp(shift + exponent ln2), near the maximum.
// Up to 2^14 the unit is a power of two: then no logit is rounded by a shift, and the units of
// blocks differ by exact factors.
template <class A>
struct Unit {
  std::int32_t exponent = 0;

  // Whether the unit can be a power of two.
  static bool in_range(A maximum) {
    return (maximum >= A(-16384) && maximum <= A(16384)) || maximum == -kInfinite<A>;
  }
  explicit Unit(A maximum) {
    if (maximum != -kInfinite<A>) {
      exponent = static_cast<std::int32_t>(maximum * A(1.4426950408889634));
    }
  }

  // Arguments of scaled_exp. The results stay above the smallest normal number.
  A cutoff() const {
    constexpr double kLowest = std::is_same_v<A, float> ? -125.5 : -1021.5;
    return static_cast<A>((static_cast<double>(exponent) + kLowest) * kLn2High);
  }
  auto bias() const {
    using Bits = std::conditional_t<std::is_same_v<A, float>, std::uint32_t, std::uint64_t>;
    return static_cast<Bits>((std::is_same_v<A, float> ? 127 : 1023) - exponent);
  }
};

// `size` lanes from p, the others from `rest`.
template <class T, class V>
V load_some(const T* p, std::int64_t size, V rest) {
  using A = Accumulate<T>;
  alignas(kVectorBytes) A lanes[kLanesOf<A>];
  store_vector<A>(lanes, rest);
  for (std::int64_t j = 0; j < size; ++j) lanes[j] = Element<T>::load(p[j]);
  return load_vector<A>(lanes);
}

template <class T, class V>
void store_some(T* p, std::int64_t size, V v) {
  using A = Accumulate<T>;
  alignas(kVectorBytes) A lanes[kLanesOf<A>];
  store_vector<A>(lanes, v);
  for (std::int64_t j = 0; j < size; ++j) p[j] = Element<T>::store(lanes[j]);
}

// A vector of logits; if it is not whole, only `size` are there and the other classes are masked.
template <class T, bool Whole>
Vector<Accumulate<T>> load_logits(const T* x, std::int64_t size) {
  using A = Accumulate<T>;
  if (Whole) return Element<T>::load_lanes(x);
  return load_some(x, size, splat<Vector<A>>(-kInfinite<A>));
}

template <class A>
A largest_lane(Vector<A> v) {
  alignas(kVectorBytes) A lanes[kLanesOf<A>];
  store_vector<A>(lanes, v);
  A largest = lanes[0];
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < kLanesOf<A>; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// The sum of all lanes, in double.
inline double sum_lanes(Vector<double> a, Vector<double> b) {
  constexpr int kCount = static_cast<int>(kLanesOf<double>);
  alignas(kVectorBytes) double lanes[kCount];
  store_vector<double>(lanes, a + b);
  for (int width = kCount / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

inline double sum_lanes(Vector<float> a, Vector<float> b) {
  alignas(kVectorBytes) float lanes[2][kLanesOf<float>];
  store_vector<float>(lanes[0], a);
  store_vector<float>(lanes[1], b);
  constexpr std::int64_t kHalf = kLanesOf<double>;
  return sum_lanes(load_double(lanes[0]) + load_double(lanes[0] + kHalf),
                   load_double(lanes[1]) + load_double(lanes[1] + kHalf));
}

template <class T>
Accumulate<T> maximum_of(const T* x, std::int64_t size) {
  using A = Accumulate<T>;
  using V = Vector<A>;
  V first = splat<V>(-kInfinite<A>), second = first;
  const auto take = [](V v, V& largest) { largest = v > largest ? v : largest; };
  std::int64_t j = 0;
  for (; j + 2 * kLanesOf<A> <= size; j += 2 * kLanesOf<A>) {
    take(load_logits<T, true>(x + j, size), first);
    take(load_logits<T, true>(x + j + kLanesOf<A>, size), second);
  }
  for (; j + kLanesOf<A> <= size; j += kLanesOf<A>) {
    take(load_logits<T, true>(x + j, size), first);
  }
  if (j < size) take(load_logits<T, false>(x + j, size - j), second);
  return largest_lane<A>(first > second ? first : second);
}

template <class T>
std::int64_t count_equal(const T* x, std::int64_t size, Accumulate<T> value) {
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < size; ++j) count += Element<T>::load(x[j]) == value ? 1 : 0;
  return count;
}

// c tanh(x / c) and its slope, through q = exp(-2 |x| / c):
// tanh(|x| / c) = (1 - q) / (1 + q), slope 4 q / (1 + q)^2. F is double or Vector<double>.
template <class F>
inline F cap(F x, double softcap, F& slope) {
  constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
  const F magnitude = float_of(bits_of(x) & ~kSign);
  F q, less_one;
  exp_and_less_one(magnitude * (-2.0 / softcap), q, less_one);
  const F inverse = 1.0 / (q + 1.0);
  slope = 4.0 * q * inverse * inverse;
  const F capped = softcap * (-less_one * inverse);
  return float_of(bits_of(capped) | (bits_of(x) & kSign));
}

// x - top of each logit, for logits too large for a unit without a shift.
template <class T, class A>
void shift_block(const T* x, std::int64_t size, double top, A* high, A* low) {
#pragma omp simd
  for (std::int64_t j = 0; j < size; ++j) {
    high[j] = Element<T>::load(x[j]) - static_cast<A>(top);
    low[j] = 0;
  }
}

// y - top of each logit under softcap as the sum of two numbers, and dy / dx. A masked class stays
// masked. The arrays hold a whole number of vectors, however many logits there are.
template <class T, class A>
void cap_block(const T* x, std::int64_t size, double softcap, double top, A* high, A* low,
               A* slopes) {
  using F = Vector<double>;
  const F minus_infinity = splat<F>(-kInfinite<double>);
  for (std::int64_t j = 0; j < size; ++j) high[j] = Element<T>::load(x[j]);
  std::fill(high + size, high + (size + kLanesOf<double> - 1) / kLanesOf<double> * kLanesOf<double>,
            A(0));
  for (std::int64_t j = 0; j < size; j += kLanesOf<double>) {
    const F value = load_double(high + j);
    F slope;
    const F shifted = cap(value, softcap, slope) - top;
    store_double(high + j, shifted);
    const F rounded = load_double(high + j);
    store_double(high + j, value == minus_infinity ? minus_infinity : shifted);
    store_double(low + j, value == minus_infinity ? F{} : shifted - rounded);
    store_double(slopes + j, value == minus_infinity ? F{} : slope);
  }
}

// What the loop over a block reads and fills.
template <class T>
struct BlockArguments {
  using A = Accumulate<T>;
  const T* x;
  const A* low;   // with Split the logits are x + low
  const T* next;  // as many logits as x
  std::int64_t size;
  A maximum;
  Unit<A> unit;
  const A* weights;
  A* exponentials;  // null: not kept
};

template <class A>
struct LaneSums {
  using V = Vector<A>;
  V total{}, rest{}, weighted{}, logits{}, allowed{}, unmasked{};
  V ahead = splat<V>(-kInfinite<A>);
};

// Fills `sums`, keeps the exponentials, and returns the maximum of the logits at `next`: reading
// the next block here overlaps with the arithmetic, and what comes after it is prefetched. When
// smoothing, a masked class keeps -1, which tells it from one that underflowed.
template <Smoothing kSmoothing, bool Split, class T>
Accumulate<T> sum_block(const BlockArguments<T>& arguments, CrossEntropyBlock& sums) {
  using A = Accumulate<T>;
  using V = Vector<A>;
  constexpr bool kSmooth = kSmoothing != Smoothing::none;
  // Copies, because the stores below might overwrite what a reference refers to.
  const BlockArguments<T> block = arguments;
  const std::int64_t size = block.size;
  const V minus_infinity = splat<V>(-kInfinite<A>);
  const V maximum = splat<V>(block.maximum);
  const V reference = splat<V>(block.maximum == -kInfinite<A> ? A(0) : block.maximum);
  const V cutoff = splat<V>(block.unit.cutoff());
  const auto bias = block.unit.bias();

  const auto add = [&](std::int64_t j, auto whole,
                       LaneSums<A>& lanes) __attribute__((always_inline)) {
    const auto load = [&](const A* array) {
      return whole ? load_vector(array + j) : load_some(array + j, size - j, V{});
    };
    const V x = load_logits<T, whole>(block.x + j, size - j);
    if (!Split) {
      const V next = load_logits<T, whole>(block.next + j, size - j);
      lanes.ahead = next > lanes.ahead ? next : lanes.ahead;
      __builtin_prefetch(block.next + j + kPrefetch);
    }
    V e = scaled_exp(x, cutoff, bias);
    if (Split) e = multiply_add(e, load(block.low), e);
    lanes.total += e;
    // Beside the largest the small terms would lose their digits.
    lanes.rest += x >= maximum ? V{} : e;
    const V below = x - reference;
    lanes.weighted = multiply_add(e, x < cutoff ? V{} : below, lanes.weighted);
    if (kSmooth) {
      if (kSmoothing == Smoothing::weighted) {
        const V weight = load(block.weights);
        lanes.logits += x == minus_infinity ? V{} : weight * below;
        lanes.allowed += x == minus_infinity ? V{} : weight;
      } else {
        lanes.logits += x == minus_infinity ? V{} : below;
      }
      lanes.unmasked += x == minus_infinity ? V{} : splat<V>(A(1));
      e = x == minus_infinity ? splat<V>(A(-1)) : e;
    }
    if (block.exponentials == nullptr) return;
    if (whole) {
      store_vector<A>(block.exponentials + j, e);
    } else {
      store_some(block.exponentials + j, size - j, e);
    }
  };

  LaneSums<A> even, odd;
  std::int64_t j = 0;
  for (; j + 2 * kLanesOf<A> <= size; j += 2 * kLanesOf<A>) {
    add(j, std::true_type{}, even);
    add(j + kLanesOf<A>, std::true_type{}, odd);
  }
  if (j + kLanesOf<A> <= size) {
    add(j, std::true_type{}, even);
    j += kLanesOf<A>;
  }
  if (j < size) add(j, std::false_type{}, odd);

  sums.total = sum_lanes(even.total, odd.total);
  sums.rest = sum_lanes(even.rest, odd.rest);
  sums.weighted = sum_lanes(even.weighted, odd.weighted);
  sums.logits = sums.allowed = 0;
  sums.unmasked = 0;
  if (kSmooth) {
    sums.logits = sum_lanes(even.logits, odd.logits);
    const double unmasked = sum_lanes(even.unmasked, odd.unmasked);
    sums.unmasked = static_cast<std::int64_t>(unmasked);
    sums.allowed =
        kSmoothing == Smoothing::weighted ? sum_lanes(even.allowed, odd.allowed) : unmasked;
  }
  return largest_lane<A>(even.ahead > odd.ahead ? even.ahead : odd.ahead);
}

// grad = (e factor - spread w) slope; 0 for masked classes, whose e is -1 when smoothing.
template <Smoothing kSmoothing, bool Capped, class T, class A>
void gradient_block(const A* exponentials, std::int64_t size, A factor, A spread, const A* weights,
                    const A* slopes, T* grad) {
  using V = Vector<A>;
  constexpr bool kSmooth = kSmoothing != Smoothing::none;
  const auto gradient = [&](std::int64_t j, std::int64_t count) {
    const auto lanes = [&](const A* array) {
      return count >= kLanesOf<A> ? load_vector(array + j) : load_some(array + j, count, V{});
    };
    const V e = lanes(exponentials);
    V result;
    if (kSmooth) {
      V share = splat<V>(spread);
      if (kSmoothing == Smoothing::weighted) share = spread * lanes(weights);
      result = multiply_add(e, splat<V>(factor), -share);
      result = e == splat<V>(A(-1)) ? V{} : result;
    } else {
      result = e * factor;
    }
    if (Capped) result *= lanes(slopes);
    if (count >= kLanesOf<A>) {
      Element<T>::store_lanes(grad + j, result);
    } else {
      store_some(grad + j, count, result);
    }
  };
  std::int64_t j = 0;
  for (; j + kLanesOf<A> <= size; j += kLanesOf<A>) gradient(j, kLanesOf<A>);
  if (j < size) gradient(j, size - j);
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
