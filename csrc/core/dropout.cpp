#include "flatstep/dropout.h"

#include "core/backend.h"
#include "core/checks.h"

namespace flatstep {
namespace {

void check(std::int64_t size, double p, const DropoutKey& key, std::int64_t first) {
  require(p >= 0 && p < 1, "p", p, "a probability in [0, 1)");
  require(key.step >= 0 && key.step < (std::int64_t{1} << 48), "step", key.step,
          "a number in [0, 2^48)");
  require(size >= 0, "size", size, "a number >= 0");
  require(first >= 0, "first", first, "an index >= 0");
}

}  // namespace

void dropout(const float* x, float* out, std::int64_t size, double p, const DropoutKey& key,
             std::int64_t first, Device device) {
  check(size, p, key, first);
  require_buffer(x, size, DType::f32, "x");
  require_buffer(out, size, DType::f32, "out");
  const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
  if (x != out && overlap(x, bytes, out, bytes)) {
    fail("out", "a buffer that overlaps x", "x itself or memory of its own");
  }
  backend_of(device)->dropout(x, out, size, p, key, first);
}

void dropout_mask(std::uint8_t* out, std::int64_t size, double p, const DropoutKey& key,
                  std::int64_t first, Device device) {
  check(size, p, key, first);
  if (size > 0 && out == nullptr) fail("out", "a null pointer", "a buffer");
  backend_of(device)->dropout_mask(out, size, p, key, first);
}

}  // namespace flatstep
