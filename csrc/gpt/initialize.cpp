#include <algorithm>
#include <cmath>

#include "core/checks.h"
#include "core/philox.h"
#include "cpu/parallel.h"
#include "flatstep/gpt.h"

namespace flatstep {
namespace {

constexpr double kTwoPi = 6.28318530717958647692;

// Standard normals number 2i and 2i + 1 of a stream (Box & Muller 1958).
void normal_pair(std::uint64_t seed, std::uint32_t stream, std::int64_t i, double out[2]) {
  const auto low = static_cast<std::uint32_t>(i);
  const auto high = static_cast<std::uint32_t>(i >> 32);
  const PhiloxWord4 random = philox(seed, low, high, 0, stream);
  const double uniform = (random.word[0] + 1.0) * 0x1p-32;  // in (0, 1]
  const double angle = kTwoPi * (random.word[1] * 0x1p-32);
  const double radius = std::sqrt(-2.0 * std::log(uniform));
  out[0] = radius * std::cos(angle);
  out[1] = radius * std::sin(angle);
}

void fill_normal(float* out, std::int64_t size, double deviation, std::uint64_t seed,
                 std::uint32_t stream) {
  cpu::parallel_ranges((size + 1) / 2, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      double pair[2];
      normal_pair(seed, stream, i, pair);
      out[2 * i] = static_cast<float>(deviation * pair[0]);
      if (2 * i + 1 < size) out[2 * i + 1] = static_cast<float>(deviation * pair[1]);
    }
  });
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

void Gpt::initialize(float* params, std::uint64_t seed) const {
  require_buffer(params, layout_.size(), DType::f32, "params");
  constexpr double kDeviation = 0.02;
  const double residual = kDeviation / std::sqrt(2.0 * static_cast<double>(config_.n_layer));
  std::uint32_t stream = 0;
  for (const LayoutEntry& entry : layout_.entries()) {
    float* values = params + entry.offset;
    if (entry.shape.size() > 1) {
      const double deviation = ends_with(entry.name, "c_proj.weight") ? residual : kDeviation;
      fill_normal(values, entry.size, deviation, seed, stream++);
    } else {
      std::fill(values, values + entry.size, ends_with(entry.name, "weight") ? 1.0f : 0.0f);
    }
  }
}

}  // namespace flatstep
