// A stand-in for libcublasLt that the test of csrc/cuda/blas.cpp loads: it computes by plain loops
// from what cuBLASLt's documentation says of its arguments, and refuses what that rules out.
#include "fake_cublas_lt.h"

#include <cstdint>
#include <cstring>

#include "cuda/cublas_lt.h"
#include "cuda/element.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace flatstep::cuda;

namespace {

FakeState state;

struct Product {
  std::int32_t transpose_a = 0, transpose_b = 0;
  std::uint32_t epilogue = 1;
  const float* bias = nullptr;
};
struct Layout {
  int type;
  std::uint64_t rows, columns;
  std::int64_t leading;
};
struct Preference {
  std::uint64_t workspace = 0;
  std::uint32_t reduction = 7;
  std::uint32_t alignment[4] = {256, 256, 256, 256};
};
// What an algorithm was found for.
struct Algorithm {
  std::uint64_t magic;
  std::uint32_t alignment[4];
  std::uint64_t workspace, epilogue;
};
constexpr std::uint64_t kMagic = 0x666c617473746570;

Product& of(BlasProduct product) { return *reinterpret_cast<Product*>(product); }
Layout& of(BlasLayout layout) { return *reinterpret_cast<Layout*>(layout); }
Preference& of(BlasPreference preference) { return *reinterpret_cast<Preference*>(preference); }

template <class Object, class Opaque>
int make(Opaque* result, const Object& object) {
  *result = reinterpret_cast<Opaque>(new Object(object));
  ++state.live;
  return kBlasSuccess;
}

// An attribute's value has one size only.
template <class T>
int set(T& attribute, const void* value, std::size_t bytes) {
  if (bytes != sizeof(T)) return kBlasInvalidValue;
  std::memcpy(&attribute, value, bytes);
  return kBlasSuccess;
}

double read(const void* data, int type, std::int64_t at) {
  if (type == kBlasBf16) return to_float(static_cast<const bf16_bits*>(data)[at]);
  if (type == kBlasF16) return to_float(static_cast<const f16_bits*>(data)[at]);
  return static_cast<const float*>(data)[at];
}

void write(void* data, int type, std::int64_t at, float value) {
  if (type == kBlasBf16) {
    static_cast<bf16_bits*>(data)[at] = from_float<bf16_bits>(value);
  } else if (type == kBlasF16) {
    static_cast<f16_bits*>(data)[at] = from_float<f16_bits>(value);
  } else {
    static_cast<float*>(data)[at] = value;
  }
}

// op(A) is m x k, op(B) k x n, C and D m x n, all by columns.
bool fits(const Product& p, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  const auto rows = [](const Layout& x, int transposed) { return transposed ? x.columns : x.rows; };
  const auto columns = [](const Layout& x, int transposed) {
    return transposed ? x.rows : x.columns;
  };
  for (const Layout* x : {&a, &b, &c, &d}) {
    if (x->rows == 0 || x->columns == 0 || x->leading < static_cast<std::int64_t>(x->rows)) {
      return false;
    }
  }
  return rows(a, p.transpose_a) == d.rows && columns(b, p.transpose_b) == d.columns &&
         columns(a, p.transpose_a) == rows(b, p.transpose_b) && c.rows == d.rows &&
         c.columns == d.columns && c.leading == d.leading && c.type == d.type && a.type == b.type &&
         (d.type == kBlasF32 || d.type == a.type);
}

std::uint64_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

}  // namespace

EXPORT FakeState* fake_state() { return &state; }

EXPORT int cublasLtCreate(BlasHandle* handle) {
  ++state.handles;
  *handle = reinterpret_cast<BlasHandle>(&state);
  return kBlasSuccess;
}

EXPORT int cublasLtMatmulDescCreate(BlasProduct* product, int compute_type, int scale_type) {
  if (compute_type != 68 || scale_type != 0) return kBlasNotSupported;
  return make(product, Product());
}
EXPORT int cublasLtMatmulDescDestroy(BlasProduct product) {
  delete &of(product);
  --state.live;
  return kBlasSuccess;
}
EXPORT int cublasLtMatmulDescSetAttribute(BlasProduct product, int attribute, const void* value,
                                          std::size_t bytes) {
  Product& p = of(product);
  switch (attribute) {
    case 3:
      return set(p.transpose_a, value, bytes);
    case 4:
      return set(p.transpose_b, value, bytes);
    case 7:
      return set(p.epilogue, value, bytes);
    case 8:
      return set(p.bias, value, bytes);
  }
  return kBlasInvalidValue;
}

EXPORT int cublasLtMatrixLayoutCreate(BlasLayout* layout, int type, std::uint64_t rows,
                                      std::uint64_t columns, std::int64_t leading) {
  return make(layout, Layout{type, rows, columns, leading});
}
EXPORT int cublasLtMatrixLayoutDestroy(BlasLayout layout) {
  delete &of(layout);
  --state.live;
  return kBlasSuccess;
}

EXPORT int cublasLtMatmulPreferenceCreate(BlasPreference* preference) {
  return make(preference, Preference());
}
EXPORT int cublasLtMatmulPreferenceDestroy(BlasPreference preference) {
  delete &of(preference);
  --state.live;
  return kBlasSuccess;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(BlasPreference preference, int attribute,
                                                const void* value, std::size_t bytes) {
  Preference& p = of(preference);
  if (attribute == 1) return set(p.workspace, value, bytes);
  if (attribute == 3) return set(p.reduction, value, bytes);
  if (attribute >= 5 && attribute <= 8) return set(p.alignment[attribute - 5], value, bytes);
  return kBlasInvalidValue;
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(BlasHandle handle, BlasProduct product, BlasLayout a,
                                          BlasLayout b, BlasLayout c, BlasLayout d,
                                          BlasPreference preference, int requested,
                                          BlasHeuristic* results, int* count) {
  ++state.searches;
  *count = 0;
  const Product& p = of(product);
  const Preference& wanted = of(preference);
  if (handle != reinterpret_cast<BlasHandle>(&state) || requested < 1 ||
      !fits(p, of(a), of(b), of(c), of(d))) {
    return kBlasInvalidValue;
  }
  if (wanted.reduction != 2) return kBlasInvalidValue;  // the product's promise
  if (state.refuse_all) return kBlasNotSupported;
  if (state.refuse_bias && p.epilogue == 4) return kBlasSuccess;  // and no result
  Algorithm algorithm{kMagic, {}, wanted.workspace, p.epilogue};
  std::memcpy(algorithm.alignment, wanted.alignment, sizeof algorithm.alignment);
  results[0] = BlasHeuristic();
  std::memcpy(&results[0].algorithm, &algorithm, sizeof algorithm);
  results[0].workspace_bytes = wanted.workspace;
  *count = 1;
  return kBlasSuccess;
}

EXPORT int cublasLtMatmul(BlasHandle, BlasProduct product, const void* alpha, const void* a,
                          BlasLayout a_layout, const void* b, BlasLayout b_layout, const void* beta,
                          const void* c, BlasLayout c_layout, void* d, BlasLayout d_layout,
                          const BlasAlgorithm* chosen, void* workspace, std::size_t workspace_bytes,
                          cudaStream_t) {
  ++state.products;
  if (state.fail_with != 0) return state.fail_with;
  const Product& p = of(product);
  const Layout &la = of(a_layout), &lb = of(b_layout), &ld = of(d_layout);
  Algorithm algorithm;
  std::memcpy(&algorithm, chosen, sizeof algorithm);
  const void* pointers[] = {a, b, c, d};
  bool good = fits(p, la, lb, of(c_layout), ld) && algorithm.magic == kMagic &&
              algorithm.epilogue == p.epilogue && workspace_bytes >= algorithm.workspace &&
              address(workspace) % 256 == 0 && (workspace != nullptr || workspace_bytes == 0);
  for (int i = 0; i < 4; ++i) good = good && address(pointers[i]) % algorithm.alignment[i] == 0;
  const bool bias = p.epilogue == 4;
  if (bias) good = good && p.bias && address(p.bias) % 16 == 0 && ld.type == kBlasF32;
  if (!good) return kBlasInvalidValue;
  state.with_bias += bias;
  const std::uint64_t depth = p.transpose_a ? la.rows : la.columns;
  const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  for (std::uint64_t i = 0; i < ld.rows; ++i) {
    for (std::uint64_t j = 0; j < ld.columns; ++j) {
      double sum = 0;
      for (std::uint64_t q = 0; q < depth; ++q) {
        sum += read(a, la.type, p.transpose_a ? q + i * la.leading : i + q * la.leading) *
               read(b, lb.type, p.transpose_b ? j + q * lb.leading : q + j * lb.leading);
      }
      const std::int64_t at = static_cast<std::int64_t>(i + j * ld.leading);
      double value = scale * sum;
      if (keep != 0) value += keep * read(c, ld.type, at);  // with 0, C is not read
      if (bias) value += p.bias[i];
      write(d, ld.type, at, static_cast<float>(value));
    }
  }
  return kBlasSuccess;
}
