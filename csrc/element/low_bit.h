// Stochastic rounding and 8-bit moments (StateFormat in flatstep/optim.h). A positive float's bits
// count steps of an eighth of a power of two once the lower 20 are rounded off; a byte holds that
// count above the block's scale. U is the unsigned type as wide as F.
#pragma once

#include "element/number.h"

namespace flatstep::FLATSTEP_ELEMENTS {
namespace {

constexpr int kCodeShift = 20;
constexpr std::uint32_t kLargestSteps = 0x7f7fffffu >> kCodeShift;  // of a finite number
constexpr std::uint32_t kSignBit = 0x80000000u;

// A first moment has a sign, and 0 is exact: then an element without a gradient does not move. A
// second moment has neither: what lies below the block's range counts as its end.
template <bool kFirst>
struct Moment {
  static constexpr std::uint32_t kCodes = kFirst ? 127 : 255;

  template <class U>
  static FLATSTEP_ELEMENT auto decode(U code, std::uint32_t scale) {
    if constexpr (!kFirst) {
      return float_of((code + scale) << kCodeShift);
    } else {
      const U steps = code & kCodes;
      const U magnitude = (steps + scale) << kCodeShift;
      return float_of((steps == 0 ? U{} : magnitude) | (code & (kCodes + 1)) << 24);
    }
  }

  template <class F>
  static FLATSTEP_ELEMENT auto magnitude(F moment) {
    return kFirst ? bits_of(moment) & ~kSignBit : bits_of(moment);
  }

  // Of a block whose largest magnitude has these bits; one step more, in case it is rounded up.
  static FLATSTEP_ELEMENT std::uint32_t scale_of(std::uint32_t largest) {
    const std::uint32_t above = (largest >> kCodeShift) + 1;
    const std::uint32_t top = above < kLargestSteps ? above : kLargestSteps;
    return top > kCodes ? top - kCodes : 0;
  }

  // With 16 random bits.
  template <class F, class U>
  static FLATSTEP_ELEMENT U encode(F moment, U random, std::uint32_t scale) {
    const U lowest = splat<U>(scale), highest = splat<U>(scale + kCodes);
    U steps = (magnitude(moment) + (random << (kCodeShift - 16))) >> kCodeShift;
    steps = steps > lowest ? steps : lowest;
    steps = steps < highest ? steps : highest;
    U code = steps - lowest;
    if (kFirst) code |= (bits_of(moment) & kSignBit) >> 24;
    return code;
  }
};
using FirstMoment = Moment<true>;
using SecondMoment = Moment<false>;

// The bits of a bfloat16 number, rounded with 16 random bits.
template <class F, class U>
FLATSTEP_ELEMENT U rounded_to_bf16(F x, U random) {
  return (bits_of(x) + random) >> 16;
}

}  // namespace
}  // namespace flatstep::FLATSTEP_ELEMENTS
