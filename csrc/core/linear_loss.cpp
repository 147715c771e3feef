// Linear layer and cross-entropy together, over chunks of rows.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/loss.h"

namespace flatstep {
namespace {

struct Shape {
  std::int64_t rows, width, classes;
  DType dtype;
};

// What one chunk of rows needs. The logits' buffer takes their gradient as well.
struct Workspace {
  LossTotals* totals;
  std::int64_t stride;  // between rows of logits and their gradients
  float* logits;        // [chunk, classes]
  void* grad_logits;    // the same buffer, or with half_products() one of the type of hidden
  float* bias;          // [classes], unless it is f32 already
  float* grad_hidden;   // [chunk, width], unless a product can be written where it belongs
  void* gemm;
  void* loss;
  std::size_t bytes;

  // `threads` as in Backend::cross_entropy_workspace_bytes.
  Workspace(const Backend& backend, const Shape& shape, std::int64_t chunk,
            const CrossEntropyOptions& options, int threads, void* base) {
    CrossEntropyRows rows{};
    rows.dtype = DType::f32;
    rows.rows = chunk;
    rows.classes = shape.classes;
    rows.softcap = options.softcap.value_or(0.0);
    rows.class_weight = options.class_weight;
    rows.label_smoothing = options.label_smoothing;
    Arena arena(base);
    const bool narrow = shape.dtype != DType::f32;
    const bool half = narrow && backend.half_products();
    totals = totals_at(arena.take<char>(static_cast<std::int64_t>(backend.loss_totals_bytes())));
    const std::int64_t multiple = backend.logits_stride_multiple();
    stride = (shape.classes + multiple - 1) / multiple * multiple;
    logits = arena.take<float>(chunk * stride);
    grad_logits = half ? arena.take<char>(chunk * stride * size_of(shape.dtype))
                       : reinterpret_cast<char*>(logits);
    bias = narrow ? arena.take<float>(shape.classes) : nullptr;
    grad_hidden = narrow && !half ? arena.take<float>(chunk * shape.width) : nullptr;
    const auto gradients = [&](int workers) {
      return backend.linear_gradients_workspace_bytes(chunk, shape.width, shape.classes, workers);
    };
    // What the other threads add must not depend on the chunk.
    const std::size_t products =
        std::max(backend.gemm_workspace_bytes(chunk, shape.classes, shape.width), gradients(1)) +
        gradients(threads) - gradients(1);
    gemm = arena.take<char>(static_cast<std::int64_t>(products));
    loss = arena.take<char>(
        static_cast<std::int64_t>(backend.cross_entropy_workspace_bytes(rows, threads)));
    bytes = arena.used();
  }
};

// How the rows are cut into chunks. The size of a chunk decides how the gradient of the weight is
// rounded, so it follows from bytes with one thread; the scratch of the others comes on top.
struct Chunks {
  const Backend& backend;
  const Shape& shape;
  const CrossEntropyOptions& options;

  std::size_t bytes(std::int64_t chunk, int threads) const {
    return Workspace(backend, shape, chunk, options, threads, nullptr).bytes;
  }
  std::size_t extra_bytes() const { return bytes(1, 0) - bytes(1, 1); }

  // Rows of each chunk but the last: as equal as they can be, and a number that suits the products,
  // where that fits.
  std::int64_t rows(std::size_t most_bytes) const {
    if (most_bytes < bytes(1, 1)) {
      fail("workspace_bytes", std::to_string(most_bytes),
           "at least " + std::to_string(bytes(1, 1)));
    }
    std::int64_t most = 1, above = std::max<std::int64_t>(1, shape.rows) + 1;
    while (above - most > 1) {
      const std::int64_t middle = most + (above - most) / 2;
      (bytes(middle, 1) <= most_bytes ? most : above) = middle;
    }
    const std::int64_t rows = std::max<std::int64_t>(1, shape.rows);
    const std::int64_t chunks = (rows + most - 1) / most;
    const std::int64_t equal = (rows + chunks - 1) / chunks;
    const std::int64_t multiple = backend.gemm_row_multiple();
    return std::min(most, (equal + multiple - 1) / multiple * multiple);
  }
};

// f16 reaches down to 6e-8 only, where a mean over many rows puts most of a gradient: products of
// that type take the logits' gradient times this, a power of two near its inverse, and give it
// back.
double gradient_scale(const Backend& backend, const CrossEntropyOptions& options, std::int64_t rows,
                      DType dtype) {
  if (dtype != DType::f16 || !backend.half_products()) return 1.0;
  double size = std::fabs(options.grad_output);
  if (options.reduction == Reduction::mean) {
    size /= options.divisor.value_or(static_cast<double>(std::max<std::int64_t>(1, rows)));
  }
  // Few valid rows among many make it larger than this knows: there is room for that.
  return size > 0 ? std::ldexp(1.0, std::clamp(-std::ilogb(size), -30, 12)) : 1.0;
}

void check_matrix(const ConstMatrix& matrix, DType dtype, const char* name) {
  if (matrix.dtype != dtype) fail(name, name_of(matrix.dtype), name_of(dtype));
  require(matrix.rows >= 0, name, matrix.rows, "a number of rows >= 0");
  require(matrix.row_stride >= matrix.cols, name, matrix.row_stride,
          "a row stride of at least the number of columns");
  require_buffer(matrix.data, matrix.rows * matrix.cols, dtype, name);
}

// A stretch of memory with the name of its argument.
struct Stretch {
  const char* name;
  const void* data;
  std::size_t bytes;
};

Stretch stretch_of(const char* name, const ConstMatrix& m) {
  return {name, m.data, extent_bytes(m.rows, m.cols, m.row_stride, m.dtype)};
}

// No output may share memory with an input or another output.
void check_overlaps(const std::vector<Stretch>& inputs, const std::vector<Stretch>& outputs) {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto refuse = [&](const Stretch& other) {
      if (outputs[i].data != nullptr && other.data != nullptr &&
          overlap(outputs[i].data, outputs[i].bytes, other.data, other.bytes)) {
        fail(outputs[i].name, std::string("a buffer that overlaps ") + other.name,
             "memory of its own");
      }
    };
    for (const Stretch& input : inputs) refuse(input);
    for (std::size_t j = 0; j < i; ++j) refuse(outputs[j]);
  }
}

// The call after its arguments were checked.
struct LinearLoss {
  const Backend& backend;
  const ConstMatrix& hidden;
  const ConstMatrix& weight;
  const float* bias;
  const IndexArray& targets;
  const CrossEntropyOptions& options;
  const LinearCrossEntropyOutputs& outputs;
  double gradient_scale;

  static const void* at(const ConstMatrix& matrix, std::int64_t row) {
    return static_cast<const char*>(matrix.data) + row * matrix.row_stride * size_of(matrix.dtype);
  }
  static float* row_of(float* array, std::int64_t row) { return array ? array + row : nullptr; }

  void chunk(const Workspace& space, std::int64_t first, std::int64_t count) const {
    const std::int64_t width = hidden.cols, classes = weight.rows;
    const DType dtype = hidden.dtype;
    const auto rows_at = [&](const void* array) {
      return array ? static_cast<const float*>(array) + first : nullptr;
    };
    const bool backward = outputs.grad_hidden || outputs.grad_weight || outputs.grad_bias;
    backend.gemm(
        {false, true, count, classes, width, at(hidden, first), hidden.row_stride, weight.data,
         weight.row_stride, space.logits, space.stride, false, bias, dtype, dtype},
        space.gemm);
    const IndexArray chunk_targets{
        static_cast<const char*>(targets.data) + first * size_of(targets.dtype), targets.dtype,
        count};
    const DType grad_dtype = backend.half_products() ? dtype : DType::f32;
    backend.cross_entropy({DType::f32,
                           space.logits,
                           count,
                           classes,
                           space.stride,
                           chunk_targets,
                           options.ignore_index,
                           options.class_weight,
                           rows_at(options.token_weight),
                           options.label_smoothing,
                           options.z_loss,
                           options.softcap.value_or(0.0),
                           options.grad_output * gradient_scale,
                           rows_at(options.grad_output_rows),
                           row_of(outputs.loss, first),
                           row_of(outputs.lse, first),
                           row_of(outputs.entropy, first),
                           backward ? space.grad_logits : nullptr,
                           grad_dtype,
                           space.stride,
                           true},
                          space.totals, space.loss);
    const bool add = outputs.accumulate || first > 0;
    const auto alpha = static_cast<float>(1.0 / gradient_scale);
    if (outputs.grad_hidden != nullptr || outputs.grad_weight != nullptr) {
      char* to = static_cast<char*>(outputs.grad_hidden);
      if (to != nullptr) to += first * outputs.grad_hidden_row_stride * size_of(dtype);
      const bool direct = to == nullptr || space.grad_hidden == nullptr;
      void* result = direct ? static_cast<void*>(to) : space.grad_hidden;
      backend.linear_gradients({{space.grad_logits, grad_dtype, count, classes, space.stride},
                                {at(hidden, first), dtype, count, width, hidden.row_stride},
                                weight,
                                result,
                                direct ? dtype : DType::f32,
                                direct ? outputs.grad_hidden_row_stride : width,
                                outputs.grad_weight,
                                add,
                                alpha},
                               space.gemm);
      if (!direct) {
        backend.convert({result, DType::f32, count, width, width}, to, dtype,
                        outputs.grad_hidden_row_stride);
      }
    }
    if (outputs.grad_bias != nullptr) {
      backend.column_sum({space.grad_logits, grad_dtype, count, classes, space.stride}, alpha,
                         outputs.grad_bias, add);
    }
  }
};

}  // namespace

std::size_t linear_cross_entropy_workspace_bytes(std::int64_t rows, std::int64_t width,
                                                 std::int64_t classes, DType dtype,
                                                 const CrossEntropyOptions& options,
                                                 std::size_t max_bytes, Device device) {
  require(rows >= 0, "rows", rows, "a number >= 0");
  require(width >= 1, "width", width, "at least one");
  require(classes >= 1, "classes", classes, "at least one class");
  const BackendHandle backend = backend_of(device);
  const Shape shape{rows, width, classes, dtype};
  const Chunks chunks{*backend, shape, options};
  return chunks.bytes(chunks.rows(max_bytes), 0);
}

CrossEntropyResult linear_cross_entropy(const ConstMatrix& hidden_in, const ConstMatrix& weight_in,
                                        const void* bias, const IndexArray& targets,
                                        const CrossEntropyOptions& options,
                                        const LinearCrossEntropyOutputs& outputs_in,
                                        void* workspace, std::size_t workspace_bytes,
                                        Device device) {
  ConstMatrix hidden = hidden_in, weight = weight_in;
  LinearCrossEntropyOutputs outputs = outputs_in;
  if (hidden.row_stride == 0) hidden.row_stride = hidden.cols;
  if (weight.row_stride == 0) weight.row_stride = weight.cols;
  if (outputs.grad_hidden_row_stride == 0) outputs.grad_hidden_row_stride = hidden.cols;
  const std::int64_t rows = hidden.rows, width = hidden.cols, classes = weight.rows;
  const DType dtype = hidden.dtype;

  if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16) {
    fail("hidden", name_of(dtype), "float32, bfloat16 or float16");
  }
  check_matrix(hidden, dtype, "hidden");
  check_matrix(weight, dtype, "weight");
  require(width >= 1, "hidden", width, "at least one column");
  require(weight.cols == width, "weight", weight.cols, "as many columns as hidden");
  require(classes >= 1, "weight", classes, "at least one row, one a class");
  require_buffer(bias, 0, dtype, "bias");
  check_loss_options(options, rows, classes, DType::f32, outputs.loss != nullptr);
  check_index_array(targets, rows);
  require_buffer(outputs.grad_hidden, 0, dtype, "grad_hidden");
  require(outputs.grad_hidden_row_stride >= width, "grad_hidden", outputs.grad_hidden_row_stride,
          "a row stride of at least the number of columns");
  if (outputs.grad_bias != nullptr && bias == nullptr) {
    fail("grad_bias", "a buffer without a bias", "none");
  }
  const std::size_t row_bytes = static_cast<std::size_t>(rows) * sizeof(float);
  const std::size_t class_bytes = static_cast<std::size_t>(classes) * sizeof(float);
  const std::size_t weight_bytes = class_bytes * static_cast<std::size_t>(width);
  check_overlaps(
      {stretch_of("hidden", hidden),
       stretch_of("weight", weight),
       {"bias", bias, static_cast<std::size_t>(classes * size_of(dtype))},
       {"targets", targets.data, static_cast<std::size_t>(rows * size_of(targets.dtype))},
       {"class_weight", options.class_weight, class_bytes},
       {"token_weight", options.token_weight, row_bytes},
       {"grad_output", options.grad_output_rows, row_bytes}},
      {{"loss", outputs.loss, row_bytes},
       {"lse", outputs.lse, row_bytes},
       {"entropy", outputs.entropy, row_bytes},
       stretch_of("grad_hidden",
                  {outputs.grad_hidden, dtype, rows, width, outputs.grad_hidden_row_stride}),
       {"grad_weight", outputs.grad_weight, weight_bytes},
       {"grad_bias", outputs.grad_bias, class_bytes}});

  const BackendHandle backend = backend_of(device);
  const LossTask task{targets, classes, DType::f32, options};
  CrossEntropyResult result;
  // Inside, the number of threads stays, and with it the workspace.
  const std::int64_t enough = std::min<std::int64_t>(classes * width, 1 << 20);
  backend->together(rows * enough, [&] {
    const Shape shape{rows, width, classes, dtype};
    const Chunks chunks{*backend, shape, options};
    require_workspace(workspace, workspace_bytes, chunks.bytes(1, 0));
    const std::int64_t step = chunks.rows(workspace_bytes - chunks.extra_bytes());
    const Workspace space(*backend, shape, step, options, 0, workspace);
    backend->start_loss(task, space.totals);
    const float* bias_f32 = static_cast<const float*>(bias);
    if (bias != nullptr && dtype != DType::f32) {
      backend->convert({bias, dtype, 1, classes, classes}, space.bias, DType::f32, classes);
      bias_f32 = space.bias;
    }
    const LinearLoss call{
        *backend, hidden,  weight,  bias_f32,
        targets,  options, outputs, gradient_scale(*backend, options, rows, dtype)};
    for (std::int64_t first = 0; first < rows; first += step) {
      call.chunk(space, first, std::min(step, rows - first));
    }
    if (rows == 0 && !outputs.accumulate) {
      if (outputs.grad_weight != nullptr) backend->fill_zero(outputs.grad_weight, weight_bytes);
      if (outputs.grad_bias != nullptr) backend->fill_zero(outputs.grad_bias, class_bytes);
    }
    result = backend->finish_loss(task, space.totals, outputs.status);
  });
  return result;
}

}  // namespace flatstep
