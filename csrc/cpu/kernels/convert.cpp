// Rows of 16-bit floating-point numbers to f32 and back.
#include "cpu/kernels/element.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class T>
void widen_row(const T* from, std::int64_t size, float* to) {
  constexpr std::int64_t kLanes = kLanesOf<float>;
  std::int64_t j = 0;
  for (; j + 2 * kLanes <= size; j += 2 * kLanes) {
    Vector<float> first, second;
    Element<T>::load_pair(from + j, first, second);
    store_vector<float>(to + j, first);
    store_vector<float>(to + j + kLanes, second);
  }
  for (; j < size; ++j) to[j] = Element<T>::load(from[j]);
}

template <class T>
void narrow_row(const float* from, std::int64_t size, T* to) {
  std::int64_t j = 0;
  for (; j + kLanesOf<float> <= size; j += kLanesOf<float>) {
    Element<T>::store_lanes(to + j, load_vector(from + j));
  }
  for (; j < size; ++j) to[j] = Element<T>::store(from[j]);
}

}  // namespace

void fill_convert_kernels(KernelTable& table) {
  table.widen_bf16 = widen_row<bf16_bits>;
  table.widen_f16 = widen_row<f16_bits>;
  table.narrow_bf16 = narrow_row<bf16_bits>;
  table.narrow_f16 = narrow_row<f16_bits>;
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
