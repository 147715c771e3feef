// Conversions of 16-bit floats against arithmetic in float64: all values up, and down every kind of
// rounding between neighbours.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "check.h"
#include "cuda/device.h"

namespace {

using namespace flatstep::cuda;

constexpr std::uint32_t kValues = 0x10000;

struct Bfloat16 {
  using Type = bf16_bits;
  static constexpr int kFractionBits = 7, kLowestExponent = -126;
  static constexpr std::uint32_t kInfinity = 0x7f80;
};
struct Float16 {
  using Type = f16_bits;
  static constexpr int kFractionBits = 10, kLowestExponent = -14;
  static constexpr std::uint32_t kInfinity = 0x7c00;
};

// The value of finite bits by the format's definition.
template <class Format>
double value_of(std::uint32_t bits) {
  const std::uint32_t magnitude = bits & 0x7fffu;
  const int exponent = static_cast<int>(magnitude >> Format::kFractionBits);
  const int fraction = static_cast<int>(magnitude & ((1u << Format::kFractionBits) - 1));
  const int whole = exponent == 0 ? fraction : fraction + (1 << Format::kFractionBits);
  const double size = std::ldexp(
      whole, Format::kLowestExponent + (exponent == 0 ? 0 : exponent - 1) - Format::kFractionBits);
  return bits & 0x8000u ? -size : size;
}

template <class Format>
std::uint32_t narrow(float x) {
  return static_cast<std::uint16_t>(from_float<typename Format::Type>(x));
}

template <class Format>
void test_widening() {
  for (std::uint32_t bits = 0; bits < kValues; ++bits) {
    const float x = to_float(static_cast<typename Format::Type>(bits));
    const std::uint32_t magnitude = bits & 0x7fffu;
    CHECK((bits_of(x) >> 31) == bits >> 15);
    if (magnitude > Format::kInfinity) {
      CHECK(std::isnan(x) && std::isnan(to_float(from_float<typename Format::Type>(x))));
      continue;
    }
    CHECK(narrow<Format>(x) == bits);
    if (magnitude < Format::kInfinity) CHECK(x == value_of<Format>(bits));
    if (magnitude == Format::kInfinity) CHECK(std::isinf(x));
  }
}

// Between a value and the next: its half goes to the even one, everything else to the nearer one.
template <class Format>
void test_rounding() {
  for (std::uint32_t bits = 0; bits < Format::kInfinity; ++bits) {
    const double low = value_of<Format>(bits);
    // Beyond the largest number lies infinity where the next one would be.
    const double high = 2 * low - (bits == 0 ? -value_of<Format>(1) : value_of<Format>(bits - 1));
    const double next = bits + 1 < Format::kInfinity ? value_of<Format>(bits + 1) : high;
    const auto middle = static_cast<float>((low + next) / 2);
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    for (const std::uint32_t sign : {0u, 0x8000u}) {
      const float s = sign != 0 ? -1.0f : 1.0f;
      CHECK(narrow<Format>(s * middle) == (sign | even));
      CHECK(narrow<Format>(s * std::nextafter(middle, 0.0f)) == (sign | bits));
      CHECK(narrow<Format>(s * std::nextafter(middle, INFINITY)) == (sign | (bits + 1)));
    }
  }
  CHECK(narrow<Format>(3.4e38f) == Format::kInfinity);
  CHECK(narrow<Format>(-INFINITY) == (0x8000u | Format::kInfinity));
}

template <class Format>
void test_pairs() {
  using T = typename Format::Type;
  for (std::uint32_t bits = 0; bits < Format::kInfinity; bits += 7) {
    const std::uint32_t word = bits | (0xbc00u ^ bits % 1024) << 16;
    float low, high;
    to_floats<T>(word, low, high);
    CHECK(low == to_float(static_cast<T>(word & 0xffffu)));
    CHECK(high == to_float(static_cast<T>(word >> 16)));
    CHECK(from_floats<T>(low, high) == word);
  }
}

void test_exp2() {
  for (float x = -126.0f; x < 128.0f; x += 0.37f) {
    CHECK(std::abs(exp2_approx(x) / std::exp2(static_cast<double>(x)) - 1) < 3e-7);
  }
  CHECK(exp2_approx(-126.5f) == 0.0f && exp2_approx(-INFINITY) == 0.0f);
  CHECK(std::isnan(exp2_approx(NAN)));
}

}  // namespace

int main() {
  test_widening<Bfloat16>();
  test_widening<Float16>();
  test_rounding<Bfloat16>();
  test_rounding<Float16>();
  test_pairs<Bfloat16>();
  test_pairs<Float16>();
  test_exp2();
  return report();
}
