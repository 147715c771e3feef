// Plain types shared by every part of the public API. No CUDA, OpenMP or BLAS type appears here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flatstep {

enum class DType { f32, f64, bf16, f16, i32, i64, u8, u16 };

// Bytes of one element.
constexpr std::int64_t size_of(DType dtype) {
  return dtype == DType::f64 || dtype == DType::i64                           ? 8
         : dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::u16 ? 2
         : dtype == DType::u8                                                 ? 1
                                                                              : 4;
}

constexpr bool is_floating(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16 || dtype == DType::f16;
}

enum class DeviceType { cpu, cuda };

// Where a call runs. `stream` is a cudaStream_t and is ignored on the CPU.
struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  std::uintptr_t stream = 0;
};

// A matrix that the caller owns: `rows` x `cols` elements, each row contiguous, rows `row_stride`
// elements apart (0 means cols).
struct ConstMatrix {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
};

// A contiguous array of class or token indices, i32 or i64.
struct IndexArray {
  const void* data = nullptr;
  DType dtype = DType::i64;
  std::int64_t size = 0;
};

}  // namespace flatstep
