#include "flatstep/loss.h"

#include "core/arena.h"
#include "core/loss.h"

namespace flatstep {
namespace {

// One element a row, of the accumulation type.
void check_row_output(const void* data, std::int64_t rows, DType dtype, const char* name,
                      const ConstMatrix& logits, std::size_t logits_bytes) {
  if (data == nullptr) return;
  require_buffer(data, rows, dtype, name);
  if (overlap(data, static_cast<std::size_t>(rows * size_of(dtype)), logits.data, logits_bytes)) {
    fail(name, "a buffer that overlaps logits", "memory of its own");
  }
}

CrossEntropyRows rows_of(const ConstMatrix& logits, const IndexArray& targets,
                         const CrossEntropyOptions& options, const CrossEntropyOutputs& outputs) {
  return {logits.dtype,
          logits.data,
          logits.rows,
          logits.cols,
          logits.row_stride,
          targets,
          options.ignore_index,
          options.class_weight,
          options.token_weight,
          options.label_smoothing,
          options.z_loss,
          options.softcap.value_or(0.0),
          options.grad_output,
          options.grad_output_rows,
          outputs.loss,
          outputs.lse,
          outputs.entropy,
          outputs.grad,
          logits.dtype,
          outputs.grad_row_stride,
          false};
}

struct Workspace {
  LossTotals* totals;
  void* rows;
  std::size_t bytes;

  Workspace(const Backend& backend, const CrossEntropyRows& call, void* base) {
    Arena arena(base);
    totals = totals_at(arena.take<char>(static_cast<std::int64_t>(backend.loss_totals_bytes())));
    rows = arena.take<char>(static_cast<std::int64_t>(backend.cross_entropy_workspace_bytes(call)));
    bytes = arena.used();
  }
};

void check_outputs(const ConstMatrix& logits, const IndexArray& targets,
                   const CrossEntropyOptions& options, const CrossEntropyOutputs& outputs) {
  const std::size_t logits_bytes =
      extent_bytes(logits.rows, logits.cols, logits.row_stride, logits.dtype);
  const DType row_dtype = accumulation_dtype(logits.dtype);
  check_row_output(outputs.loss, logits.rows, row_dtype, "loss", logits, logits_bytes);
  check_row_output(outputs.lse, logits.rows, row_dtype, "lse", logits, logits_bytes);
  check_row_output(outputs.entropy, logits.rows, row_dtype, "entropy", logits, logits_bytes);
  if (outputs.grad == nullptr) return;
  require(outputs.grad_row_stride >= logits.cols, "grad", outputs.grad_row_stride,
          "a row stride of at least the number of classes");
  require_buffer(outputs.grad, logits.rows, logits.dtype, "grad");
  const std::size_t grad_bytes =
      extent_bytes(logits.rows, logits.cols, outputs.grad_row_stride, logits.dtype);
  const bool in_place = outputs.grad == logits.data && outputs.grad_row_stride == logits.row_stride;
  if (!in_place && overlap(outputs.grad, grad_bytes, logits.data, logits_bytes)) {
    fail("grad", "a buffer that overlaps logits", "the logits buffer itself or memory of its own");
  }
  const std::size_t row_bytes = static_cast<std::size_t>(logits.rows * size_of(row_dtype));
  const auto refuse = [&](const void* other, std::size_t bytes, const char* name) {
    if (other != nullptr && overlap(outputs.grad, grad_bytes, other, bytes)) {
      fail("grad", std::string("a buffer that overlaps ") + name, "memory of its own");
    }
  };
  refuse(outputs.loss, row_bytes, "loss");
  refuse(outputs.lse, row_bytes, "lse");
  refuse(outputs.entropy, row_bytes, "entropy");
  refuse(options.grad_output_rows, row_bytes, "grad_output");
  refuse(options.token_weight, row_bytes, "token_weight");
  refuse(options.class_weight, static_cast<std::size_t>(logits.cols * size_of(row_dtype)),
         "class_weight");
  refuse(targets.data, static_cast<std::size_t>(targets.size * size_of(targets.dtype)), "targets");
}

}  // namespace

void check_loss_options(const CrossEntropyOptions& options, std::int64_t rows, std::int64_t classes,
                        DType dtype, bool has_row_losses) {
  require(options.label_smoothing >= 0 && options.label_smoothing < 1, "label_smoothing",
          options.label_smoothing, "a number in [0, 1)");
  require(std::isfinite(options.z_loss) && options.z_loss >= 0, "z_loss", options.z_loss,
          "a finite number >= 0");
  if (options.softcap) {
    require(std::isfinite(*options.softcap) && *options.softcap > 0, "softcap", *options.softcap,
            "a finite number > 0");
  }
  require(std::isfinite(options.grad_output), "grad_output", options.grad_output,
          "a finite number");
  if (options.divisor) {
    require(std::isfinite(*options.divisor) && *options.divisor > 0, "divisor", *options.divisor,
            "a finite number > 0");
    if (options.reduction != Reduction::mean) {
      fail("divisor", "a value with a reduction other than mean", "reduction mean");
    }
  }
  const bool per_row = options.reduction == Reduction::none;
  if (per_row != has_row_losses && rows > 0) {
    fail("loss", per_row ? "no buffer" : "a buffer", "a buffer exactly with reduction none");
  }
  if (!per_row && options.grad_output_rows != nullptr) {
    fail("grad_output", "an array with a scalar loss", "a number unless reduction is none");
  }
  const DType weight_dtype = accumulation_dtype(dtype);
  require_buffer(options.grad_output_rows, 0, weight_dtype, "grad_output");
  require_buffer(options.class_weight, 0, weight_dtype, "class_weight");
  require_buffer(options.token_weight, 0, weight_dtype, "token_weight");
  require(classes >= 1, "logits", classes, "at least one class");
}

void check_index_array(const IndexArray& targets, std::int64_t rows) {
  if (targets.dtype != DType::i32 && targets.dtype != DType::i64) {
    fail("targets", name_of(targets.dtype), "int32 or int64");
  }
  require_buffer(targets.data, targets.size, targets.dtype, "targets");
  if (targets.size != rows) {
    fail("targets", to_text(targets.size) + " elements",
         to_text(rows) + ", one for each row of logits");
  }
}

void throw_fault(const CrossEntropyStatus& status) {
  const std::string where = to_text(status.where);
  switch (status.fault) {
    case LossFault::token_weight:
      throw InvalidArgument("token_weight: row " + where + " holds " + to_text(status.value) +
                            ", expected a finite number");
    case LossFault::class_weight:
      throw InvalidArgument("class_weight: element " + where + " holds " + to_text(status.value) +
                            ", expected a finite number >= 0");
    case LossFault::weight_sum:
      fail("token_weight", "weights that sum to " + to_text(status.value),
           "a sum >= 0 with reduction mean and no divisor");
    default:
      throw OutOfRange("targets: row " + where + " holds " + to_text(status.target) +
                       ", expected a class from 0 to " + to_text(status.classes - 1) +
                       " or ignore_index " + to_text(status.ignore_index));
  }
}

CrossEntropyResult result_of(const CrossEntropyStatus& status) {
  if (status.fault != LossFault::none) throw_fault(status);
  return status.result;
}

std::size_t cross_entropy_workspace_bytes(std::int64_t rows, std::int64_t cols, DType dtype,
                                          const CrossEntropyOptions& options, Device device) {
  require(rows >= 0, "rows", rows, "a number >= 0");
  require(cols >= 1, "logits", cols, "at least one class");
  return Workspace(*backend_of(device),
                   rows_of({nullptr, dtype, rows, cols, cols}, {}, options, {}), nullptr)
      .bytes;
}

CrossEntropyResult cross_entropy(const ConstMatrix& logits_in, const IndexArray& targets,
                                 const CrossEntropyOptions& options,
                                 const CrossEntropyOutputs& outputs_in, void* memory,
                                 std::size_t workspace_bytes, Device device) {
  ConstMatrix logits = logits_in;
  CrossEntropyOutputs outputs = outputs_in;
  if (logits.row_stride == 0) logits.row_stride = logits.cols;
  if (outputs.grad_row_stride == 0) outputs.grad_row_stride = logits.cols;

  if (!is_floating(logits.dtype)) {
    fail("logits", name_of(logits.dtype), "float32, float64, bfloat16 or float16");
  }
  require(logits.rows >= 0, "logits", logits.rows, "a number of rows >= 0");
  check_loss_options(options, logits.rows, logits.cols, logits.dtype, outputs.loss != nullptr);
  require(logits.row_stride >= logits.cols, "logits", logits.row_stride,
          "a row stride of at least the number of classes");
  require_buffer(logits.data, logits.rows, logits.dtype, "logits");
  check_index_array(targets, logits.rows);
  check_outputs(logits, targets, options, outputs);

  const BackendHandle backend = backend_of(device);
  const LossTask task{targets, logits.cols, accumulation_dtype(logits.dtype), options};
  CrossEntropyResult result;
  // Inside, the number of threads stays, and with it the workspace.
  backend->together(logits.rows * logits.cols, [&] {
    const CrossEntropyRows rows = rows_of(logits, targets, options, outputs);
    require_workspace(memory, workspace_bytes, Workspace(*backend, rows, nullptr).bytes);
    const Workspace workspace(*backend, rows, memory);
    backend->start_loss(task, workspace.totals);
    backend->cross_entropy(rows, workspace.totals, workspace.rows);
    result = backend->finish_loss(task, workspace.totals, outputs.status);
  });
  return result;
}

}  // namespace flatstep
