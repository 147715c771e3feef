// The units in which exponentials of logits are kept.
#pragma once

#include <type_traits>

#include "core/tasks.h"
#include "element/exponential.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

// The exponentials of a block are taken in units of exp(shift + exponent ln2), near the maximum.
// Up to 2^14 the unit is a power of two: then no logit is rounded by a shift, and the units of
// blocks differ by exact factors.
template <class A>
struct Unit {
  std::int32_t exponent = 0;

  // Whether the unit can be a power of two.
  static FLATSTEP_ELEMENT bool in_range(A maximum) {
    return (maximum >= A(-16384) && maximum <= A(16384)) || maximum == -kInfinite<A>;
  }
  explicit FLATSTEP_ELEMENT Unit(A maximum) {
    if (maximum != -kInfinite<A>) {
      exponent = static_cast<std::int32_t>(maximum * A(1.4426950408889634));
    }
  }

  // Arguments of scaled_exp. The results stay above the smallest normal number.
  FLATSTEP_ELEMENT A cutoff() const {
    constexpr A kLowest = std::is_same_v<A, float> ? A(-125.5) : A(-1021.5);
    return (static_cast<A>(exponent) + kLowest) * A(kLn2High);
  }
  FLATSTEP_ELEMENT auto bias() const {
    using Bits = std::conditional_t<std::is_same_v<A, float>, std::uint32_t, std::uint64_t>;
    return static_cast<Bits>((std::is_same_v<A, float> ? 127 : 1023) - exponent);
  }
};

// The unit of a block over that of another.
FLATSTEP_ELEMENT double unit_ratio(const CrossEntropyBlock& block, double shift, double exponent) {
  if (block.maximum == -kInfinite<double>) return 0.0;
  const double power = static_cast<double>(block.exponent) - exponent;
  if (block.shift == shift) {
    return power < -1022 ? 0.0 : float_of(static_cast<std::uint64_t>(power + 1023) << 52);
  }
  return exp(((block.shift - shift) + power * kLn2High) + power * kLn2Low);
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
