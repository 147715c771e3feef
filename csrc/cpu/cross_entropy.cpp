#include "cpu/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/arena.h"
#include "core/checks.h"
#include "core/loss.h"
#include "core/loss_totals.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

// ---- targets -----------------------------------------------------------------------------------

struct TargetTotals {
  std::int64_t n_valid = 0;
  double weight = 0;
};

// Of [begin, end): totals, and the first row that is wrong, or end.
template <class Index, class A>
TargetTotals total_of(const IndexArray& targets, std::int64_t classes,
                      const CrossEntropyOptions& options, std::int64_t begin, std::int64_t end,
                      std::int64_t& wrong) {
  const auto* index = static_cast<const Index*>(targets.data);
  const auto* class_weight = static_cast<const A*>(options.class_weight);
  const auto* token_weight = static_cast<const A*>(options.token_weight);
  TargetTotals totals;
  wrong = end;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t target = index[row];
    if (target == options.ignore_index) continue;
    const double weight = token_weight ? static_cast<double>(token_weight[row]) : 1.0;
    if (target < 0 || target >= classes || !std::isfinite(weight)) {
      wrong = row;
      return totals;
    }
    ++totals.n_valid;
    totals.weight += class_weight ? weight * static_cast<double>(class_weight[target]) : weight;
  }
  return totals;
}

template <class A>
void check_class_weight(const void* weights, std::int64_t classes) {
  const auto* weight = static_cast<const A*>(weights);
  // Without a way out of the loop the compiler takes several weights at a time.
  bool fine = true;
  for (std::int64_t j = 0; j < classes; ++j) {
    fine &= weight[j] >= 0 && weight[j] <= std::numeric_limits<A>::max();
  }
  if (fine) return;
  CrossEntropyStatus status;
  status.fault = LossFault::class_weight;
  while (std::isfinite(weight[status.where]) && weight[status.where] >= 0) ++status.where;
  status.value = static_cast<double>(weight[status.where]);
  throw_fault(status);
}

// ---- rows --------------------------------------------------------------------------------------

constexpr std::int64_t kBlock = CrossEntropyBlock::kClasses;
// Logits of the rows whose losses are summed together, and of those that are one task where there
// are enough tasks for every worker: a kernel fetches what lies behind its row, which then is its
// own next one.
constexpr std::int64_t kSumElements = 32768, kTaskElements = 524288;
constexpr std::int64_t kTasksPerWorker = 8;
// When smoothing, every row visits the class weights twice. From so many rows on they are copied
// where vectors of them would lie across cache lines, as NumPy's do: that takes a quarter longer.
constexpr std::int64_t kRowsForCopy = 16;

std::int64_t rows_per_sum(std::int64_t classes) {
  return std::max<std::int64_t>(1, kSumElements / classes);
}

std::int64_t block_count(const CrossEntropyRows& rows) {
  return (rows.classes + kBlock - 1) / kBlock;
}

const CrossEntropyKernels& kernels_of(DType dtype) {
  const KernelTable& table = kernels();
  switch (dtype) {
    case DType::f64:
      return table.cross_entropy_f64;
    case DType::bf16:
      return table.cross_entropy_bf16;
    case DType::f16:
      return table.cross_entropy_f16;
    default:
      return table.cross_entropy_f32;
  }
}

CrossEntropyScratch take_scratch(Arena& arena, const CrossEntropyRows& rows) {
  const std::int64_t together = group_rows_of(rows.classes);
  const std::int64_t element = rows.dtype == DType::f64 ? 8 : 4;
  const std::int64_t bytes = together * rows.classes * element;
  const bool kept_elsewhere = rows.dtype == DType::bf16 || rows.dtype == DType::f16;
  CrossEntropyScratch scratch{};
  scratch.blocks = arena.take<CrossEntropyBlock>(together * block_count(rows));
  scratch.exponentials = kept_elsewhere ? arena.take<char>(bytes) : nullptr;
  scratch.slopes = rows.softcap > 0 ? arena.take<char>(bytes) : nullptr;
  return scratch;
}

struct Workspace {
  CrossEntropySums* partials;
  double* weight_sums;  // of every block of classes; null where nobody asks for them
  char* weights;        // a copy of the class weights, where it pays; else null
  char* scratch;        // of every worker, so many bytes each
  std::size_t scratch_bytes;
  std::size_t bytes;

  Workspace(const CrossEntropyRows& rows, int threads, void* base) {
    Arena one(nullptr);
    take_scratch(one, rows);
    scratch_bytes = one.used() + kThreadGap;
    const std::int64_t stretch = rows_per_sum(rows.classes);
    Arena arena(base);
    partials = arena.take<CrossEntropySums>((rows.rows + stretch - 1) / stretch);
    const bool weighted = rows.class_weight != nullptr && rows.label_smoothing > 0;
    weight_sums = weighted ? arena.take<double>(block_count(rows)) : nullptr;
    const std::int64_t element = rows.dtype == DType::f64 ? 8 : 4;
    const bool many = rows.rows >= kRowsForCopy;
    weights = weighted && many ? arena.take<char>(rows.classes * element) : nullptr;
    scratch = arena.take<char>(static_cast<std::int64_t>(scratch_bytes) * threads);
    bytes = arena.used();
  }
};

// The sum of the class weights of each block, in the same order whatever the instruction set; and
// their copy, unless it is null.
template <class A>
void sum_weights(const CrossEntropyRows& rows, double* sums, void* copy) {
  constexpr std::int64_t kLanes = 8;
  const auto* weights = static_cast<const A*>(rows.class_weight);
  parallel_ranges(block_count(rows), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const A* weight = weights + block * kBlock;
      const std::int64_t size = std::min(kBlock, rows.classes - block * kBlock);
      double lanes[kLanes] = {};
      if (copy != nullptr) std::copy(weight, weight + size, static_cast<A*>(copy) + block * kBlock);
      std::int64_t j = 0;
      for (; j + kLanes <= size; j += kLanes) {
        for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] += static_cast<double>(weight[j + i]);
      }
      for (std::int64_t i = 0; j + i < size; ++i) lanes[i] += static_cast<double>(weight[j + i]);
      sums[block] = 0;
      for (const double lane : lanes) sums[block] += lane;
    }
  });
}

// One row after the other, each split over its classes. A worker sums into blocks of its own, which
// are copied when it is done: stores to lines that another core has read hold up all that follow.
template <class ScratchOf>
void split_rows(const CrossEntropyRows& rows, const CrossEntropyKernels& kernel,
                const ScratchOf& scratch_of, CrossEntropySums* sums) {
  const std::int64_t blocks = block_count(rows);
  // Two stretches a worker even out their speeds; each more costs a quarter of a microsecond.
  const std::int64_t stretch = (blocks + 2 * worker_count() - 1) / (2 * worker_count());
  const CrossEntropyScratch all = scratch_of(0);
  CrossEntropyGroup group{};
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    group.rows = 0;
    sums[row] = {};
    if (!kernel.prepare(rows, row, group)) continue;
    parallel_for((blocks + stretch - 1) / stretch, [&](std::int64_t task, int worker) {
      const std::int64_t begin = task * stretch, end = std::min(begin + stretch, blocks);
      CrossEntropyScratch own = all;
      own.blocks = scratch_of(worker).blocks;
      kernel.sum_blocks(rows, group, begin, end, own);
      if (worker > 0) std::copy(own.blocks + begin, own.blocks + end, all.blocks + begin);
    });
    sums[row] = kernel.finish(rows, group, all);
    if (rows.grad == nullptr) continue;
    // Backwards, since what was summed last is nearest.
    parallel_ranges(
        blocks, stretch,
        [&](std::int64_t begin, std::int64_t end) {
          kernel.write_gradient(rows, group, begin, end, all);
        },
        Order::backwards);
  }
}

}  // namespace

void start_loss(const LossTask& task, LossTotals* totals) {
  const IndexArray& targets = task.targets;
  const CrossEntropyOptions& options = task.options;
  const bool wide = task.weight_dtype == DType::f64;
  if (options.class_weight != nullptr) {
    wide ? check_class_weight<double>(options.class_weight, task.classes)
         : check_class_weight<float>(options.class_weight, task.classes);
  }
  constexpr std::int64_t kParts = 64;  // a fixed number, so that sums are the same
  const std::int64_t stretch = std::max<std::int64_t>(1024, (targets.size + kParts - 1) / kParts);
  TargetTotals parts[kParts];
  std::int64_t wrong[kParts];
  const auto total = targets.dtype == DType::i32
                         ? (wide ? total_of<std::int32_t, double> : total_of<std::int32_t, float>)
                         : (wide ? total_of<std::int64_t, double> : total_of<std::int64_t, float>);
  parallel_ranges(targets.size, stretch, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t part = begin / stretch;
    parts[part] = total(targets, task.classes, options, begin, end, wrong[part]);
  });

  CrossEntropyStatus status;
  status.classes = task.classes;
  status.ignore_index = options.ignore_index;
  *totals = {};
  for (std::int64_t begin = 0; begin < targets.size; begin += stretch) {
    const std::int64_t part = begin / stretch, row = wrong[part];
    if (row < std::min(begin + stretch, targets.size)) {
      status.where = row;
      status.target = index_at(targets, row);
      status.fault = LossFault::target;
      if (status.target >= 0 && status.target < task.classes) {
        status.fault = LossFault::token_weight;
        status.value = wide ? static_cast<const double*>(options.token_weight)[row]
                            : static_cast<const float*>(options.token_weight)[row];
      }
      throw_fault(status);
    }
    totals->n_valid += parts[part].n_valid;
    totals->weight += parts[part].weight;
  }
  set_factor(reduction_of(options), *totals);
  if (totals->fault != LossFault::none) {
    status.fault = totals->fault;
    status.value = totals->weight;
    throw_fault(status);
  }
}

std::size_t cross_entropy_workspace_bytes(const CrossEntropyRows& rows, int threads) {
  return Workspace(rows, threads, nullptr).bytes;
}

void cross_entropy(const CrossEntropyRows& call, LossTotals* totals, void* memory) {
  CrossEntropyRows rows = call;
  rows.grad_output = call.grad_output * totals->factor;
  const Workspace workspace(rows, worker_count(), memory);
  const CrossEntropyKernels& kernel = kernels_of(rows.dtype);
  if (workspace.weight_sums != nullptr) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(rows.class_weight) % 64 == 0;
    char* copy = aligned ? nullptr : workspace.weights;
    rows.dtype == DType::f64 ? sum_weights<double>(rows, workspace.weight_sums, copy)
                             : sum_weights<float>(rows, workspace.weight_sums, copy);
    if (copy != nullptr) rows.class_weight = copy;
  }
  const auto scratch_of = [&](int worker) {
    Arena arena(workspace.scratch + static_cast<std::size_t>(worker) * workspace.scratch_bytes);
    CrossEntropyScratch scratch = take_scratch(arena, rows);
    scratch.weight_sums = workspace.weight_sums;
    return scratch;
  };
  const std::int64_t stretch = rows_per_sum(rows.classes);
  const std::int64_t parts = (rows.rows + stretch - 1) / stretch;
  // A row costs and gives the same either way; few long rows would leave threads idle.
  if (stretch == 1 && worker_count() > 1 && rows.rows < 2 * worker_count()) {
    split_rows(rows, kernel, scratch_of, workspace.partials);
  } else {
    const std::int64_t most = std::max<std::int64_t>(1, kTaskElements / (stretch * rows.classes));
    const std::int64_t task_parts =
        std::clamp<std::int64_t>(parts / (kTasksPerWorker * worker_count()), 1, most);
    parallel_for((parts + task_parts - 1) / task_parts, [&](std::int64_t task, int worker) {
      const CrossEntropyScratch scratch = scratch_of(worker);
      const std::int64_t end = std::min((task + 1) * task_parts, parts);
      for (std::int64_t part = task * task_parts; part < end; ++part) {
        workspace.partials[part] =
            kernel.rows(rows, part * stretch, std::min((part + 1) * stretch, rows.rows), scratch);
      }
    });
  }
  CrossEntropySums sums;
  for (std::int64_t part = 0; part < parts; ++part) {
    sums.loss += workspace.partials[part].loss;
    sums.correct += workspace.partials[part].correct;
  }
  totals->loss += sums.loss;
  totals->correct += sums.correct;
}

}  // namespace flatstep::cpu
