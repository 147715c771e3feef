#include "cpu/cross_entropy.h"

#include <algorithm>
#include <limits>

#include "core/tasks.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "flatstep/error.h"

namespace flatstep::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 16;  // also the stretch of one partial sum

// Copies targets as int64, ignored ones as -1, and returns how many are not ignored.
template <class Index>
std::int64_t check_targets(const Index* targets, std::int64_t rows, std::int64_t classes,
                           std::int64_t ignore_index, std::int64_t* checked) {
  std::int64_t valid = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t target = targets[row];
    if (target == ignore_index) {
      checked[row] = -1;
      continue;
    }
    if (target < 0 || target >= classes) {
      throw OutOfRange("targets: row " + std::to_string(row) + " holds " + std::to_string(target) +
                       ", expected a class from 0 to " + std::to_string(classes - 1) +
                       " or ignore_index " + std::to_string(ignore_index));
    }
    checked[row] = target;
    ++valid;
  }
  return valid;
}

auto kernel_of(DType dtype) {
  const KernelTable& table = kernels();
  return dtype == DType::f64   ? table.cross_entropy_f64
         : dtype == DType::f32 ? table.cross_entropy_f32
                               : table.cross_entropy_bf16;
}

}  // namespace

CrossEntropyResult cross_entropy(const ConstMatrix& logits, const IndexArray& targets,
                                 const CrossEntropyOptions& options,
                                 const CrossEntropyOutputs& outputs, void* workspace) {
  auto* checked = static_cast<std::int64_t*>(workspace);
  auto* partials = reinterpret_cast<double*>(checked + logits.rows);

  CrossEntropyResult result;
  result.n_valid = targets.dtype == DType::i32
                       ? check_targets(static_cast<const std::int32_t*>(targets.data), logits.rows,
                                       logits.cols, options.ignore_index, checked)
                       : check_targets(static_cast<const std::int64_t*>(targets.data), logits.rows,
                                       logits.cols, options.ignore_index, checked);

  double divisor = 1.0;
  if (options.reduction == Reduction::mean) {
    divisor =
        options.divisor.value_or(static_cast<double>(std::max<std::int64_t>(1, result.n_valid)));
  }
  const CrossEntropyRows rows{logits.data,
                              logits.cols,
                              logits.row_stride,
                              checked,
                              options.label_smoothing,
                              options.grad_output / divisor,
                              outputs.grad_output,
                              outputs.loss,
                              outputs.lse,
                              outputs.grad,
                              outputs.grad_row_stride};
  const auto kernel = kernel_of(logits.dtype);
  parallel_ranges(logits.rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end) {
    partials[begin / kRowsPerTask] = kernel(rows, begin, end);
  });
  double sum = 0;
  for (std::int64_t i = 0; i * kRowsPerTask < logits.rows; ++i) sum += partials[i];
  result.loss = sum / divisor;
  const bool empty_mean = options.reduction == Reduction::mean && result.n_valid == 0;
  if (empty_mean && options.on_empty == OnEmpty::nan) {
    result.loss = std::numeric_limits<double>::quiet_NaN();
  }
  return result;
}

}  // namespace flatstep::cpu
