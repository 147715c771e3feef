#include "cpu/linear_gradients.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "core/arena.h"
#include "cpu/gemm_tiles.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

// The classes are cut into at most so many ranges, a number that follows from the shape. A range
// has a sum of its own for the gradient of the hidden states; together those take at most this part
// of what the logits take.
constexpr std::int64_t kMostRanges = 16;
constexpr std::int64_t kLeastRanges = 4;
constexpr std::int64_t kLogitsPerSum = 8;
// Panels of the weight, and of the transposed gradient, that a worker packs at a time.
constexpr std::int64_t kWeightPanels = 4;
constexpr std::int64_t kGradPanels = 8;

// How the classes are cut. A worker visits a few of them at a time, whose gradient stays in its
// second-level cache while it meets the weight and, transposed, the hidden states. Each range has
// fewer visits than the one before, so that the workers end together.
struct Cut {
  std::int64_t ranges = 0, classes_at_once;
  std::array<std::int64_t, kMostRanges + 1> begin;  // of each range, in visits

  Cut(std::int64_t width, std::int64_t classes) {
    const std::int64_t most = std::min(kMostRanges, classes / (kLogitsPerSum * width));
    if (most < kLeastRanges) return;
    const std::int64_t depth = kernels().gemm_depth;
    classes_at_once = round_up(blocks(classes, blocks(classes, depth)), kLine);
    const std::int64_t visits = blocks(classes, classes_at_once);
    begin[0] = 0;
    for (std::int64_t left = most - 1; left >= 0; --left) {
      const std::int64_t end = visits - visits * left * (left + 1) / (most * (most + 1));
      if (end > begin[ranges]) begin[++ranges] = end;
    }
  }

  // The work is divided further between so many workers.
  std::int64_t parts(std::int64_t workers) const {
    return blocks(2 * workers * begin[1], begin[ranges]);
  }
};

struct Workspace {
  float* sums;           // [ranges, rows, width]
  float* packed_hidden;  // as a product packs B
  float* packed_weight;  // of every worker, so many floats each
  float* packed_grad;
  std::int64_t weight_floats, grad_floats;
  std::size_t bytes;

  Workspace(const Cut& cut, std::int64_t rows, std::int64_t width, int workers, void* base) {
    const KernelTable& table = kernels();
    Arena arena(base);
    sums = arena.take<float>(cut.ranges * rows * width);
    packed_hidden = arena.take<float>(round_up(width, table.gemm_columns) * rows);
    weight_floats = kWeightPanels * table.gemm_columns * table.gemm_depth;
    grad_floats = round_up(kGradPanels * table.gemm_rows * table.gemm_depth, kLine);
    packed_weight = arena.take<float>(workers * weight_floats);
    packed_grad = arena.take<float>(workers * grad_floats);
    bytes = arena.used();
  }
};

class Products {
 public:
  Products(const LinearGradients& call, const Cut& cut, const Workspace& space)
      : call_(call),
        cut_(cut),
        space_(space),
        grad_weight_{true,
                     false,
                     call.grad.cols,
                     call.hidden.cols,
                     call.grad.rows,
                     call.grad.data,
                     call.grad.row_stride,
                     call.hidden.data,
                     call.hidden.row_stride,
                     call.grad_weight,
                     call.hidden.cols,
                     call.accumulate,
                     nullptr,
                     DType::f32,
                     call.hidden.dtype} {}

  void pack_hidden() const {
    const std::int64_t stretch = kPackPanels * kernels().gemm_columns;
    parallel_ranges(call_.hidden.cols, stretch, [&](std::int64_t begin, std::int64_t end) {
      kernels().gemm_pack_b(grad_weight_, begin, end - begin, 0, grad_weight_.k,
                            space_.packed_hidden + begin * grad_weight_.k);
    });
  }

  // Of one range, what belongs to some columns of the hidden states and the weight.
  void multiply(std::int64_t range, const Range& columns, int worker) const {
    const Range all{0, call_.grad.cols};
    for (std::int64_t visit = cut_.begin[range]; visit < cut_.begin[range + 1]; ++visit) {
      const Range classes = sub_range(all, visit, cut_.classes_at_once);
      const bool first = visit == cut_.begin[range];
      if (call_.grad_hidden != nullptr) add_to_hidden(range, classes, first, columns, worker);
      if (call_.grad_weight != nullptr) add_to_weight(classes, columns, worker);
    }
  }

  // The gradient of the hidden states from the sums of the ranges, in their order.
  void sum_ranges() const {
    const std::int64_t width = call_.weight.cols, size = call_.grad.rows * width;
    parallel_for(call_.grad.rows, [&](std::int64_t row, int) {
      kernels().column_sum(
          space_.sums + row * width, size, cut_.ranges, width,
          static_cast<float*>(call_.grad_hidden) + row * call_.grad_hidden_row_stride, false);
    });
  }

 private:
  void add_to_hidden(std::int64_t range, const Range& classes, bool first, const Range& columns,
                     int worker) const {
    const std::int64_t rows = call_.grad.rows, width = call_.weight.cols;
    const Gemm gemm{false,
                    false,
                    rows,
                    width,
                    call_.grad.cols,
                    call_.grad.data,
                    call_.grad.row_stride,
                    call_.weight.data,
                    call_.weight.row_stride,
                    space_.sums + range * rows * width,
                    width,
                    false,
                    nullptr,
                    DType::f32,
                    call_.weight.dtype};
    float* packed = space_.packed_weight + worker * space_.weight_floats;
    const std::int64_t stretch = kWeightPanels * kernels().gemm_columns;
    for (std::int64_t j = 0; j < blocks(columns.size, stretch); ++j) {
      const Range part = sub_range(columns, j, stretch);
      kernels().gemm_pack_b(gemm, part.begin, part.size, classes.begin, classes.size, packed);
      kernels().gemm_tile(
          gemm, {0, rows, part.begin, part.size, classes.size, operand_a(gemm, nullptr, 0, classes),
                 operand_b(gemm, packed, part.begin, classes), first});
    }
  }

  void add_to_weight(const Range& classes, const Range& columns, int worker) const {
    const std::int64_t stretch = kGradPanels * kernels().gemm_rows;
    float* packed = space_.packed_grad + worker * space_.grad_floats;
    const Range all_rows{0, grad_weight_.k};
    for (std::int64_t i = 0; i < blocks(classes.size, stretch); ++i) {
      const Range part = sub_range(classes, i, stretch);
      for (std::int64_t p = 0; p < blocks(all_rows.size, kernels().gemm_depth); ++p) {
        const Range depth = sub_range(all_rows, p, kernels().gemm_depth);
        kernels().gemm_pack_a(grad_weight_, part.begin, part.size, depth.begin, depth.size, packed);
        GemmOperand hidden =
            operand_b(grad_weight_, space_.packed_hidden + columns.begin * grad_weight_.k,
                      columns.begin, all_rows);
        hidden.data += depth.begin * hidden.step;
        kernels().gemm_tile(grad_weight_,
                            {part.begin, part.size, columns.begin, columns.size, depth.size,
                             operand_a(grad_weight_, packed, 0, depth), hidden, p == 0});
      }
    }
  }

  const LinearGradients& call_;
  const Cut& cut_;
  const Workspace& space_;
  const Gemm grad_weight_;
};

}  // namespace

std::size_t linear_gradients_workspace_bytes(std::int64_t rows, std::int64_t width,
                                             std::int64_t classes, int workers) {
  const Cut cut(width, classes);
  return cut.ranges > 0 ? Workspace(cut, rows, width, workers, nullptr).bytes : 0;
}

bool linear_gradients(const LinearGradients& call, void* memory) {
  const std::int64_t width = call.weight.cols;
  const Cut cut(width, call.grad.cols);
  if (cut.ranges == 0 || call.accumulate_hidden) return false;
  const Workspace space(cut, call.grad.rows, width, worker_count(), memory);
  const Products products(call, cut, space);
  if (call.grad_weight != nullptr) products.pack_hidden();
  // With many workers each takes a part of the columns, which changes no sum.
  const Range columns{0, width};
  const std::int64_t stretch =
      round_up(blocks(width, cut.parts(worker_count())), kernels().gemm_columns);
  const std::int64_t stretches = blocks(width, stretch);
  std::atomic<std::int64_t> next = 0;
  parallel_for(worker_count(), [&](std::int64_t, int worker) {
    for (std::int64_t task; (task = next++) < cut.ranges * stretches;) {
      products.multiply(task / stretches, sub_range(columns, task % stretches, stretch), worker);
    }
  });
  if (call.grad_hidden != nullptr) products.sum_ranges();
  return true;
}

}  // namespace flatstep::cpu
