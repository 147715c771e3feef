// Single-precision matrix product on fixed tiles: the same bits for any number of threads.
#pragma once

#include <cstddef>

#include "cpu/kernels/table.h"
#include "flatstep/export.h"

namespace flatstep::cpu {

// Floats of workspace for packed panels: for products of at most m x n x k, and for any.
FLATSTEP_API std::size_t gemm_workspace_floats(std::int64_t m, std::int64_t n, std::int64_t k);
FLATSTEP_API std::size_t gemm_workspace_floats();

// C = op(A) op(B) (+ C with accumulate) (+ bias), over all threads. C must not overlap A or B.
FLATSTEP_API void gemm(const Gemm& call, float* workspace);

// The same on the calling thread alone, for use inside a task. `workspace` holds
// gemm_serial_workspace_floats(m, n, k).
FLATSTEP_API void gemm_serial(const Gemm& call, float* workspace);
FLATSTEP_API std::size_t gemm_serial_workspace_floats(std::int64_t m, std::int64_t n,
                                                      std::int64_t k);

}  // namespace flatstep::cpu
