// Single-precision matrix product on fixed tiles: the same bits for any number of threads.
#pragma once

#include <cstddef>
#include <type_traits>

#include "cpu/kernels/table.h"
#include "flatstep/export.h"

namespace flatstep::cpu {

// A part of C whose elements are complete.
struct GemmRegion {
  std::int64_t row, rows, column, columns;
};

// What is done with each region while it is in the cache, by the thread that computed it. Regions
// are whole tiles; their rows follow from the shape of the product, their columns may also depend
// on the number of threads.
struct GemmFinish {
  void (*function)(void* context, const GemmRegion& region) = nullptr;
  void* context = nullptr;
};

// Floats of workspace for packed panels, for products of at most m x n x k.
FLATSTEP_API std::size_t gemm_workspace_floats(std::int64_t m, std::int64_t n, std::int64_t k);

// C = op(A) op(B) (+ C with accumulate) (+ bias), over all threads. C must not overlap A or B.
FLATSTEP_API void gemm(const Gemm& call, float* workspace, const GemmFinish& finish = {});

// The same, and then finish(region) for every region.
template <class Finish>
void gemm_then(const Gemm& call, float* workspace, Finish&& finish) {
  gemm(call, workspace,
       {[](void* context, const GemmRegion& region) {
          (*static_cast<std::remove_reference_t<Finish>*>(context))(region);
        },
        &finish});
}

// Rows of a region, all but the last ones: what a sum over the rows of C may be cut into.
FLATSTEP_API std::int64_t gemm_region_rows(std::int64_t m, std::int64_t n);

}  // namespace flatstep::cpu
