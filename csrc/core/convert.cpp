#include "flatstep/convert.h"

#include "core/backend.h"
#include "core/checks.h"

namespace flatstep {

void convert(const void* from, DType from_dtype, void* to, DType to_dtype, std::int64_t size,
             Device device) {
  const auto half = [](DType dtype) { return dtype == DType::bf16 || dtype == DType::f16; };
  if (!(from_dtype == DType::f32 && half(to_dtype)) &&
      !(half(from_dtype) && to_dtype == DType::f32)) {
    fail("to", std::string(name_of(to_dtype)) + " from " + name_of(from_dtype),
         "bfloat16 or float16 from float32, or back");
  }
  require(size >= 0, "size", size, "a number >= 0");
  require_buffer(from, size, from_dtype, "from");
  require_buffer(to, size, to_dtype, "to");
  const auto bytes = [&](DType dtype) { return static_cast<std::size_t>(size * size_of(dtype)); };
  if (overlap(from, bytes(from_dtype), to, bytes(to_dtype))) {
    fail("to", "a buffer that overlaps from", "memory of its own");
  }
  // Rows of a few pages, so that all threads take part; then the rest.
  constexpr std::int64_t kRow = 16384;
  const std::int64_t rows = size / kRow;
  const auto part = [&](std::int64_t first, std::int64_t count, std::int64_t width) {
    backend_of(device)->convert({static_cast<const char*>(from) + first * size_of(from_dtype),
                                 from_dtype, count, width, width},
                                static_cast<char*>(to) + first * size_of(to_dtype), to_dtype,
                                width);
  };
  part(0, rows, kRow);
  if (size > rows * kRow) part(rows * kRow, 1, size - rows * kRow);
}

}  // namespace flatstep
