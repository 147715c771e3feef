// The gradients of a linear layer as two products of whole matrices.
#include <algorithm>

#include "core/backend.h"

namespace flatstep {

std::size_t Backend::linear_gradients_workspace_bytes(std::int64_t rows, std::int64_t width,
                                                      std::int64_t classes, int) const {
  return std::max(gemm_workspace_bytes(rows, width, classes),
                  gemm_workspace_bytes(classes, width, rows));
}

void Backend::linear_gradients(const LinearGradients& call, void* workspace) const {
  const ConstMatrix &grad = call.grad, &hidden = call.hidden, &weight = call.weight;
  if (call.grad_hidden != nullptr) {
    gemm({false, false, grad.rows, weight.cols, grad.cols, grad.data, grad.row_stride, weight.data,
          weight.row_stride, call.grad_hidden, call.grad_hidden_row_stride, call.accumulate_hidden,
          nullptr, grad.dtype, weight.dtype, call.grad_hidden_dtype, call.alpha},
         workspace);
  }
  if (call.grad_weight != nullptr) {
    gemm({true, false, grad.cols, hidden.cols, grad.rows, grad.data, grad.row_stride, hidden.data,
          hidden.row_stride, call.grad_weight, hidden.cols, call.accumulate, nullptr, grad.dtype,
          hidden.dtype, DType::f32, call.alpha},
         workspace);
  }
}

}  // namespace flatstep
