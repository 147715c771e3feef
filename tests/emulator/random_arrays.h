// Random numbers of every type as bytes, and arrays that a test has on the host and on the device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "device_array.h"
#include "flatstep/convert.h"
#include "flatstep/types.h"

using Bytes = std::vector<std::uint8_t>;

inline std::mt19937_64& random_engine() {
  static std::mt19937_64 engine(1);
  return engine;
}

inline std::vector<float> normals(std::int64_t size, float scale = 1.0f) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(size));
  for (float& value : values) value = scale * normal(random_engine());
  return values;
}

// f32, bf16 or f16.
inline Bytes bytes_of(const std::vector<float>& values, flatstep::DType dtype) {
  const auto size = static_cast<std::int64_t>(values.size());
  Bytes bytes(static_cast<std::size_t>(size * flatstep::size_of(dtype)));
  if (bytes.empty()) return bytes;
  if (dtype == flatstep::DType::f32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    flatstep::convert(values.data(), flatstep::DType::f32, bytes.data(), dtype, size);
  }
  return bytes;
}

template <class T>
std::vector<T> numbers_of(const Bytes& bytes) {
  std::vector<T> numbers(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

// The same bytes for the CPU and for kernels, at an offset from where memory begins.
class Twin {
 public:
  explicit Twin(Bytes bytes, std::size_t offset = 0)
      : offset_(offset), size_(bytes.size()), host_(padded(bytes)), device_(host_) {}
  Twin() : Twin(Bytes()) {}

  void* host() { return host_.data() + offset_; }
  void* device() { return device_.data() + offset_; }
  // Also what lies around them.
  bool same() const { return host_ == device_.read(); }
  Bytes on_host() const {
    return Bytes(host_.begin() + static_cast<std::ptrdiff_t>(offset_),
                 host_.begin() + static_cast<std::ptrdiff_t>(offset_ + size_));
  }
  void set(const Bytes& bytes) {
    const Bytes all = padded(bytes);
    std::copy(all.begin(), all.end(), host_.begin());
    flatstep::cuda::check(
        cudaMemcpy(device_.data(), host_.data(), host_.size(), cudaMemcpyHostToDevice), "copy");
  }

 private:
  Bytes padded(const Bytes& bytes) const {
    Bytes all(offset_, 77);
    all.insert(all.end(), bytes.begin(), bytes.end());
    all.resize(all.size() + 16, 99);
    return all;
  }

  std::size_t offset_, size_;
  Bytes host_;
  DeviceArray<std::uint8_t> device_;
};
