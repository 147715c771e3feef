#include "flatstep/loss.h"

#include "core/backend.h"
#include "core/checks.h"

namespace flatstep {
namespace {

std::size_t extent_bytes(std::int64_t rows, std::int64_t cols, std::int64_t stride, DType dtype) {
  if (rows == 0 || cols == 0) return 0;
  return static_cast<std::size_t>(((rows - 1) * stride + cols) * size_of(dtype));
}

void check_options(const CrossEntropyOptions& options) {
  require(options.label_smoothing >= 0 && options.label_smoothing < 1, "label_smoothing",
          options.label_smoothing, "a number in [0, 1)");
  require(std::isfinite(options.grad_output), "grad_output", options.grad_output,
          "a finite number");
  if (options.divisor) {
    require(std::isfinite(*options.divisor) && *options.divisor > 0, "divisor", *options.divisor,
            "a finite number > 0");
    if (options.reduction != Reduction::mean) {
      fail("divisor", "a value with a reduction other than mean", "reduction mean");
    }
  }
}

// One element a row, of the accumulation type.
void check_row_output(const void* data, std::int64_t rows, DType dtype, const char* name,
                      const ConstMatrix& logits, std::size_t logits_bytes) {
  if (data == nullptr) return;
  require_buffer(data, rows, dtype, name);
  if (overlap(data, static_cast<std::size_t>(rows * size_of(dtype)), logits.data, logits_bytes)) {
    fail(name, "a buffer that overlaps logits", "memory of its own");
  }
}

}  // namespace

std::size_t cross_entropy_workspace_bytes(std::int64_t rows) {
  require(rows >= 0, "rows", rows, "a number >= 0");
  // The checked targets as int64, and a partial sum for every 16 rows.
  return static_cast<std::size_t>(rows + (rows + 15) / 16) * 8;
}

CrossEntropyResult cross_entropy(const ConstMatrix& logits_in, const IndexArray& targets,
                                 const CrossEntropyOptions& options,
                                 const CrossEntropyOutputs& outputs_in, void* workspace,
                                 std::size_t workspace_bytes, Device device) {
  ConstMatrix logits = logits_in;
  CrossEntropyOutputs outputs = outputs_in;
  if (logits.row_stride == 0) logits.row_stride = logits.cols;
  if (outputs.grad_row_stride == 0) outputs.grad_row_stride = logits.cols;

  check_options(options);
  if (logits.dtype != DType::f32 && logits.dtype != DType::f64 && logits.dtype != DType::bf16) {
    fail("logits", name_of(logits.dtype), "float32, float64 or bfloat16");
  }
  require(logits.rows >= 0, "logits", logits.rows, "a number of rows >= 0");
  require(logits.cols >= 1, "logits", logits.cols, "at least one class");
  require(logits.row_stride >= logits.cols, "logits", logits.row_stride,
          "a row stride of at least the number of classes");
  require_buffer(logits.data, logits.rows, logits.dtype, "logits");
  if (targets.dtype != DType::i32 && targets.dtype != DType::i64) {
    fail("targets", name_of(targets.dtype), "int32 or int64");
  }
  require_buffer(targets.data, targets.size, targets.dtype, "targets");
  if (targets.size != logits.rows) {
    fail("targets", to_text(targets.size) + " elements",
         to_text(logits.rows) + ", one for each row of logits");
  }

  const std::size_t logits_bytes =
      extent_bytes(logits.rows, logits.cols, logits.row_stride, logits.dtype);
  const DType row_dtype = logits.dtype == DType::f64 ? DType::f64 : DType::f32;
  const bool per_row = options.reduction == Reduction::none;
  if (per_row != (outputs.loss != nullptr) && logits.rows > 0) {
    fail("loss", per_row ? "no buffer" : "a buffer", "a buffer exactly with reduction none");
  }
  if (!per_row && outputs.grad_output != nullptr) {
    fail("grad_output", "an array with a scalar loss", "a number unless reduction is none");
  }
  check_row_output(outputs.loss, logits.rows, row_dtype, "loss", logits, logits_bytes);
  check_row_output(outputs.lse, logits.rows, row_dtype, "lse", logits, logits_bytes);
  if (outputs.grad_output != nullptr) {
    require_buffer(outputs.grad_output, logits.rows, row_dtype, "grad_output");
  }
  if (outputs.grad != nullptr) {
    require(outputs.grad_row_stride >= logits.cols, "grad", outputs.grad_row_stride,
            "a row stride of at least the number of classes");
    require_buffer(outputs.grad, logits.rows, logits.dtype, "grad");
    const std::size_t grad_bytes =
        extent_bytes(logits.rows, logits.cols, outputs.grad_row_stride, logits.dtype);
    const bool in_place =
        outputs.grad == logits.data && outputs.grad_row_stride == logits.row_stride;
    if (!in_place && overlap(outputs.grad, grad_bytes, logits.data, logits_bytes)) {
      fail("grad", "a buffer that overlaps logits",
           "the logits buffer itself or memory of its own");
    }
    const std::size_t row_bytes = static_cast<std::size_t>(logits.rows * size_of(row_dtype));
    for (const void* other : {static_cast<const void*>(outputs.loss),
                              static_cast<const void*>(outputs.lse), outputs.grad_output}) {
      if (other != nullptr && overlap(outputs.grad, grad_bytes, other, row_bytes)) {
        fail("grad", "a buffer that overlaps loss, lse or grad_output", "memory of its own");
      }
    }
    if (overlap(outputs.grad, grad_bytes, targets.data,
                static_cast<std::size_t>(targets.size * size_of(targets.dtype)))) {
      fail("grad", "a buffer that overlaps targets", "memory of its own");
    }
  }
  require_workspace(workspace, workspace_bytes, cross_entropy_workspace_bytes(logits.rows));
  return backend_of(device).cross_entropy(logits, targets, options, outputs, workspace);
}

}  // namespace flatstep
