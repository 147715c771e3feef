// Matrix products by cuBLASLt. It stores matrices by columns: to it, a row-major matrix is its
// transpose. So C = op(A) op(B) is asked for as C' = op(B)' op(A)': B goes first, with the same
// flag, and the rows of the result are our columns.
#include "cuda/blas.h"

#include <array>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/bias.h"
#include "cuda/cublas_lt.h"
#include "cuda/launch.h"
#include "flatstep/error.h"

namespace flatstep::cuda {
namespace {

// cuBLASLt's kernels may read the bias 16 bytes at a time, and its search is not told of that.
constexpr unsigned kBiasAlignment = 16;
constexpr unsigned kMostAlignment = 256;
constexpr std::size_t kMostShapes = 4096;

const char* name_of_status(int status) {
  switch (status) {
    case kBlasNotInitialized:
      return "not initialized";
    case kBlasAllocFailed:
      return "out of memory";
    case kBlasInvalidValue:
      return "invalid value";
    case kBlasArchMismatch:
      return "the device is too old";
    case kBlasExecutionFailed:
      return "execution failed";
    case kBlasInternalError:
      return "internal error";
    case kBlasNotSupported:
      return "not supported";
    default:
      return "unknown status";
  }
}

void check_blas(int status, const char* what) {
  if (status == kBlasSuccess) return;
  throw RuntimeFailure("cuBLAS: " + std::string(what) + ": " + name_of_status(status) +
                       " (status " + std::to_string(status) + ", " + cublas_lt().path + ")");
}

// Owns one of cuBLASLt's descriptors.
template <class T>
class Owned {
 public:
  Owned(T object, int (*destroy)(T)) : object_(object), destroy_(destroy) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { destroy_(object_); }
  operator T() const { return object_; }

 private:
  T object_;
  int (*destroy_)(T);
};

template <class T>
T created(int status, const T& object, const char* what) {
  check_blas(status, what);
  return object;
}

int type_of(DType dtype) {
  return dtype == DType::bf16 ? kBlasBf16 : dtype == DType::f16 ? kBlasF16 : kBlasF32;
}

unsigned alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  unsigned alignment = kMostAlignment;
  while (address % alignment != 0) alignment /= 2;
  return alignment;
}

// What the choice of an algorithm depends on.
using Key = std::tuple<int, std::array<std::int64_t, 6>, std::array<int, 4>, std::array<bool, 3>,
                       std::array<unsigned, 3>, std::size_t>;

// The descriptors of one call.
class Product {
 public:
  Product(const CublasLt& api, const Gemm& call, bool bias)
      : api_(api),
        call_(call),
        product_(create_product(api), api.product_destroy),
        first_(layout(call.type_b, call.transpose_b ? call.k : call.n,
                      call.transpose_b ? call.n : call.k, call.ldb),
               api.layout_destroy),
        second_(layout(call.type_a, call.transpose_a ? call.m : call.k,
                       call.transpose_a ? call.k : call.m, call.lda),
                api.layout_destroy),
        result_(layout(call.type_c, call.n, call.m, call.ldc), api.layout_destroy) {
    set(kBlasTransposeA, call.transpose_b ? kBlasTransposed : kBlasAsIs);
    set(kBlasTransposeB, call.transpose_a ? kBlasTransposed : kBlasAsIs);
    if (bias) {
      set(kBlasEpilogue, kBlasEpilogueBias);
      set(kBlasBiasPointer, static_cast<const void*>(call.bias));
    }
  }

  // Whether there is an algorithm.
  bool search(BlasHandle handle, std::size_t workspace_bytes, BlasAlgorithm* algorithm) const {
    BlasPreference made = nullptr;
    const Owned<BlasPreference> preference(
        created(api_.preference_create(&made), made, "preference"), api_.preference_destroy);
    const auto prefer = [&](int attribute, auto value) {
      check_blas(api_.preference_set(preference, attribute, &value, sizeof value), "preference");
    };
    prefer(kBlasMaxWorkspaceBytes, std::uint64_t{workspace_bytes});
    prefer(kBlasReductionSchemeMask, kBlasReductionInComputeType);
    prefer(kBlasAlignmentA, std::uint32_t{alignment_of(call_.b)});
    prefer(kBlasAlignmentB, std::uint32_t{alignment_of(call_.a)});
    prefer(kBlasAlignmentC, std::uint32_t{alignment_of(call_.c)});
    prefer(kBlasAlignmentD, std::uint32_t{alignment_of(call_.c)});
    BlasHeuristic found{};
    int count = 0;
    const int status = api_.heuristic(handle, product_, first_, second_, result_, result_,
                                      preference, 1, &found, &count);
    if (status == kBlasNotSupported) return false;
    check_blas(status, "search of an algorithm");
    if (count == 0 || found.state != kBlasSuccess) return false;
    *algorithm = found.algorithm;
    return true;
  }

  void run(BlasHandle handle, const BlasAlgorithm& algorithm, void* workspace,
           std::size_t workspace_bytes, cudaStream_t stream) const {
    const float alpha = call_.alpha, beta = call_.accumulate ? 1 : 0;
    check_blas(
        api_.matmul(handle, product_, &alpha, call_.b, first_, call_.a, second_, &beta, call_.c,
                    result_, call_.c, result_, &algorithm, workspace, workspace_bytes, stream),
        "matrix product");
  }

 private:
  static BlasProduct create_product(const CublasLt& api) {
    BlasProduct product = nullptr;
    return created(api.product_create(&product, kBlasCompute32F, kBlasF32), product, "product");
  }

  BlasLayout layout(DType dtype, std::int64_t rows, std::int64_t columns,
                    std::int64_t leading_dimension) const {
    BlasLayout layout = nullptr;
    return created(api_.layout_create(&layout, type_of(dtype), static_cast<std::uint64_t>(rows),
                                      static_cast<std::uint64_t>(columns), leading_dimension),
                   layout, "layout");
  }

  template <class T>
  void set(int attribute, T value) {
    check_blas(api_.product_set(product_, attribute, &value, sizeof value), "product");
  }

  const CublasLt& api_;
  const Gemm& call_;
  Owned<BlasProduct> product_;
  Owned<BlasLayout> first_, second_, result_;
};

// Handles of the devices and algorithms of the shapes seen so far.
class Library {
 public:
  // Never destroyed: work may be under way at exit, and the driver may be gone.
  static Library& instance() {
    static auto* library = new Library();
    return *library;
  }

  BlasHandle handle(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    BlasHandle& handle = handles_[device];
    if (handle == nullptr) {
      BlasHandle made = nullptr;
      check_blas(cublas_lt().create(&made), "start");
      handle = made;
    }
    return handle;
  }

  // Whether there is an algorithm.
  bool algorithm(const Key& key, const Product& product, BlasHandle handle,
                 std::size_t workspace_bytes, BlasAlgorithm* algorithm) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto known = algorithms_.find(key);
    if (known == algorithms_.end()) {
      Choice choice{};
      choice.found = product.search(handle, workspace_bytes, &choice.algorithm);
      if (algorithms_.size() >= kMostShapes) algorithms_.clear();
      known = algorithms_.emplace(key, choice).first;
    }
    *algorithm = known->second.algorithm;
    return known->second.found;
  }

 private:
  struct Choice {
    BlasAlgorithm algorithm;
    bool found;
  };

  std::mutex mutex_;
  std::map<int, BlasHandle> handles_;
  std::map<Key, Choice> algorithms_;
};

// Whether cuBLASLt has it; it takes a bias of the result's type only.
bool try_gemm(const Gemm& call, bool bias, void* workspace, std::size_t workspace_bytes,
              cudaStream_t stream) {
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  const Key key{device,
                {call.m, call.n, call.k, call.lda, call.ldb, call.ldc},
                {type_of(call.type_a), type_of(call.type_b), type_of(call.type_c), bias},
                {call.transpose_a, call.transpose_b, call.accumulate},
                {alignment_of(call.a), alignment_of(call.b), alignment_of(call.c)},
                workspace_bytes};
  Library& library = Library::instance();
  const BlasHandle handle = library.handle(device);
  const Product product(cublas_lt(), call, bias);
  BlasAlgorithm algorithm{};
  if (!library.algorithm(key, product, handle, workspace_bytes, &algorithm)) return false;
  product.run(handle, algorithm, workspace, workspace_bytes, stream);
  return true;
}

}  // namespace

void gemm(const Gemm& call, void* workspace, std::size_t workspace_bytes, cudaStream_t stream) {
  if (call.m == 0 || call.n == 0) return;
  if (call.k == 0) {
    if (!call.accumulate || call.bias != nullptr) add_bias(call, call.accumulate, stream);
    return;
  }
  // As aligned as what an allocation begins with.
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  const std::size_t skipped = (kMostAlignment - address % kMostAlignment) % kMostAlignment;
  void* const aligned =
      workspace_bytes > skipped ? static_cast<char*>(workspace) + skipped : nullptr;
  const std::size_t bytes = aligned == nullptr ? 0 : workspace_bytes - skipped;

  const bool with_bias = call.bias != nullptr && call.type_c == DType::f32 &&
                         alignment_of(call.bias) >= kBiasAlignment;
  if (with_bias && try_gemm(call, true, aligned, bytes, stream)) return;
  if (!try_gemm(call, false, aligned, bytes, stream)) {
    throw RuntimeFailure("cuBLAS: no algorithm for a product of " + std::to_string(call.m) + " x " +
                         std::to_string(call.k) + " by " + std::to_string(call.n) + " (" +
                         cublas_lt().path + ")");
  }
  if (call.bias != nullptr) add_bias(call, true, stream);
}

}  // namespace flatstep::cuda
