// Arithmetic that all devices share: powers, random bits, the order of the norm's sum.
#define FLATSTEP_ELEMENTS element_test
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "core/dropout_task.h"
#include "core/rounding.h"
#include "element/power.h"
#include "element/softcap.h"
#include "flatstep/grad.h"

namespace {

using namespace flatstep;

#if defined(__SIZEOF_FLOAT128__)
using Wide = __float128;
#else
using Wide = long double;
#endif

double reference_power(double base, std::int64_t exponent) {
  Wide result = 1, square = base;
  for (; exponent > 0; exponent >>= 1, square *= square) {
    if (exponent & 1) result *= square;
  }
  return static_cast<double>(result);
}

// The correctly rounded powers; where they are beyond the range of 1e-290, next to nothing.
void test_power() {
  using element_test::power;
  CHECK(power(0.9, 0) == 1.0 && power(0.0, 3) == 0.0 && power(0.999, 1) == 0.999);
  CHECK(power(0.5, 40) == 0x1p-40 && power(1.0, 1000000) == 1.0);
  std::mt19937_64 engine(1);
  std::uniform_real_distribution<double> uniform;
  const double betas[] = {0.9, 0.95, 0.99, 0.999, 0.9999, 0.9999999, 0.5, 0.1};
  const std::int64_t last = (std::int64_t{1} << 48) - 1;
  int wrong = 0;
  const auto check = [&](double beta, std::int64_t t) {
    const double got = power(beta, t), wanted = reference_power(beta, t);
    wrong += got == wanted || (got < 1e-290 && wanted < 1e-290) ? 0 : 1;
  };
  for (int i = 0; i < 400000; ++i) {
    const double random = 1 - std::exp2(-23 * uniform(engine));
    const double beta = i % 2 ? random : betas[i / 2 % 8];
    const double most = std::fmin(700 / -std::log(beta), static_cast<double>(last));
    check(beta, static_cast<std::int64_t>(std::exp2(std::log2(most) * uniform(engine))));
  }
  for (const double beta : betas) {
    for (const std::int64_t t : {std::int64_t{2}, std::int64_t{1000000}, last - 1, last}) {
      check(beta, t);
    }
  }
  CHECK(wrong == 0);
}

// Both ways of a softcap, beside the library's tanh: what float32 logits get is off by 2^-29 at
// most, what float64 ones get by some of their last digits.
void test_softcap() {
  using element_test::cap, element_test::Softcap;
  std::mt19937_64 engine(2);
  std::uniform_real_distribution<double> uniform(-3.0, 3.0);
  for (const double c : {0.1, 1.0, 30.0, 50.0, 511.9, 512.0, 600.0, 1e5}) {
    const Softcap single(c, DType::f32), half(c, DType::bf16), wide(c, DType::f64);
    double worst = 0, worst_slope = 0, worst_wide = 0;
    int differ = 0;
    const auto check = [&](double x) {
      const Wide exact = c * std::tanh(static_cast<long double>(x) / c);
      const Wide exact_slope = 1 - exact / c * (exact / c);
      double slope, half_slope, wide_slope;
      const double y = cap(x, single, slope), far = cap(x, wide, wide_slope);
      differ += y == cap(x, half, half_slope) && slope == half_slope && cap(-x, single, slope) == -y
                    ? 0
                    : 1;
      const auto error = [](double got, Wide wanted) {
        return std::fabs(static_cast<double>(got - wanted));
      };
      worst = std::fmax(worst, error(y, exact));
      worst_slope = std::fmax(worst_slope, error(slope, exact_slope));
      worst_wide = std::fmax(worst_wide, error(far, exact) / (std::fabs(far) + 1e-300));
    };
    for (int i = 0; i < 100000; ++i) check(c * uniform(engine));
    for (const double x : {0.0, 1e-300, 1e-30, 1e-5 * c}) check(x);
    // Larger logits have larger values, also where one way ends.
    const float near = static_cast<float>(c), next = std::nextafterf(near, 1e9f);
    double slope;
    CHECK(cap(double{near}, single, slope) < cap(double{next}, single, slope));
    CHECK(cap(double{std::nextafterf(near, 0.0f)}, single, slope) <
          cap(double{near}, single, slope));
    CHECK(worst <= std::fmin(0x1p-29, 0x1p-37 * c) && worst_slope <= 0x1p-36 && differ == 0);
    CHECK(worst_wide <= 4e-15);
  }
  double slope;
  const Softcap softcap(30.0, DType::f32);
  CHECK(cap(1e30, softcap, slope) == 30.0 && slope == 0.0);
  CHECK(std::isnan(cap(std::nan(""), softcap, slope)));
}

// Also of what is a little below 0, or far: the logarithm of a positive float32 less 1.
void test_logarithm() {
  using element_test::log1p_nonnegative;
  std::mt19937_64 engine(3);
  std::uniform_real_distribution<double> uniform;
  double worst = 0;
  const auto check = [&](double x) {
    const long double wanted = std::log1p(static_cast<long double>(x));
    const long double error = std::fabs(log1p_nonnegative(x) - wanted);
    worst = std::fmax(worst, static_cast<double>(error / std::fabs(wanted)));
  };
  for (int i = 0; i < 200000; ++i) {
    check(std::exp2(1300 * uniform(engine) - 1000));
    check(double{static_cast<float>(std::exp2(120 * uniform(engine) - 20))} - 1.0);
    check(double{static_cast<float>(1.0 - std::exp2(-1 - 23 * uniform(engine)))} - 1.0);
  }
  CHECK(worst <= 4 * 0x1p-53);
  CHECK(log1p_nonnegative(0.0) == 0.0 && std::isnan(log1p_nonnegative(std::nan(""))));
}

void test_rounding_bits_of_a_lane() {
  for (const std::int64_t step : {std::int64_t{1}, (std::int64_t{1} << 48) - 1}) {
    const RoundingKey key{0x123456789abcdefu, step, 5};
    for (const std::int64_t block : {std::int64_t{0}, std::int64_t{7}, std::int64_t{1} << 34}) {
      std::uint16_t bits[kRoundingBlock];
      cpu::kernels().rounding_bits(key, block * kRoundingBlock, kRoundingBlock, bits);
      bool same = true;
      for (int lane = 0; lane < 32; ++lane) {
        const RoundingBits4 own = rounding_bits_of_lane(key, block, lane);
        for (int j = 0; j < 4; ++j) same &= own.bits[j] == bits[lane + 32 * j];
      }
      CHECK(same);
    }
  }
}

// Any first index and size give the words of their counters, also where the lower word wraps.
void test_dropout_from_any_index() {
  const double p = 0.3;
  const DropoutKey key{0x123456789ABCDEF0u, (std::int64_t{5} << 32) + 7, 3};
  const DropoutTask task = dropout_task(p, key);
  std::vector<std::uint8_t> mask(700);
  std::mt19937_64 engine(2);
  std::int64_t wrong = 0;
  for (const std::int64_t start : {std::int64_t{0}, (std::int64_t{1} << 34) - 320}) {
    for (int trial = 0; trial < 200; ++trial) {
      const auto first = start + static_cast<std::int64_t>(engine() % 300);
      const auto size = static_cast<std::int64_t>(engine() % mask.size());
      dropout_mask(mask.data(), size, p, key, first);
      for (std::int64_t i = 0; i < size; ++i) {
        const auto index = static_cast<std::uint64_t>(first + i);
        const PhiloxWord4 words = dropout_words(task, index / 4);
        wrong += mask[static_cast<std::size_t>(i)] != (words.word[index % 4] >= task.threshold);
      }
    }
  }
  CHECK(wrong == 0);
}

// Groups of 256 chunks in order, then the groups in order.
void test_order_of_the_norm() {
  GradPartials partials({(600 * GradPartials::kChunk)});
  CHECK(partials.chunks() == 600);
  std::mt19937_64 engine(2);
  std::uniform_real_distribution<double> uniform;
  for (double& sum : partials.sums) sum = std::exp2(60 * uniform(engine) - 30);
  const auto sum_of = [&](std::size_t begin, std::size_t end) {
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += partials.sums[i];
    return sum;
  };
  const double wanted = (sum_of(0, 256) + sum_of(256, 512)) + sum_of(512, 600);
  CHECK(partials.norm() == std::sqrt(wanted));
  CHECK(GradPartials().norm() == 0);
}

}  // namespace

int main() {
  require_isa();
  test_power();
  test_softcap();
  test_logarithm();
  test_rounding_bits_of_a_lane();
  test_dropout_from_any_index();
  test_order_of_the_norm();
  return report();
}
