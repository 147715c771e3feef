// The targets' counts and sums before the rows, and the result after them.
#include "core/loss_totals.h"

#include <algorithm>

#include "cuda/cross_entropy.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flatstep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kNone = INT64_MAX;

// A LossTask for the device.
struct TargetTask {
  IndexArray targets;
  std::int64_t classes, ignore_index;
  const float *class_weight, *token_weight;
  LossReduction reduction;
};

TargetTask task_of(const LossTask& task) {
  return {task.targets,
          task.classes,
          task.options.ignore_index,
          static_cast<const float*>(task.options.class_weight),
          static_cast<const float*>(task.options.token_weight),
          reduction_of(task.options)};
}

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0; }

struct PartMemory {
  std::int64_t count[kThreads / kWarp];
  double weight[kThreads / kWarp];
  std::int64_t first[kThreads / kWarp];
};

struct Smaller {
  __device__ __forceinline__ std::int64_t operator()(std::int64_t a, std::int64_t b) const {
    return b < a ? b : a;
  }
};

__global__ void __launch_bounds__(kThreads) parts_kernel(const TargetTask task, TargetPart* parts) {
  PartMemory& memory = shared_memory<PartMemory>();
  const std::int64_t stretch = (task.targets.size + kTargetParts - 1) / kTargetParts;
  const std::int64_t begin = blockIdx.x * stretch;
  const std::int64_t limit = begin + stretch;
  const std::int64_t end = limit < task.targets.size ? limit : task.targets.size;
  std::int64_t count = 0, wrong_row = kNone, wrong_class = kNone;
  double weight = 0;
  for (std::int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
    const std::int64_t target = index_at(task.targets, row);
    if (target == task.ignore_index) continue;
    const float own = task.token_weight != nullptr ? task.token_weight[row] : 1.0f;
    if (target < 0 || target >= task.classes || !is_finite(own)) {
      if (wrong_row == kNone) wrong_row = row;
      continue;
    }
    ++count;
    const double of_class =
        task.class_weight != nullptr ? static_cast<double>(task.class_weight[target]) : 1.0;
    weight += static_cast<double>(own) * of_class;
  }
  if (task.class_weight != nullptr) {
    for (std::int64_t j = blockIdx.x * kThreads + threadIdx.x; j < task.classes;
         j += kThreads * kTargetParts) {
      const float own = task.class_weight[j];
      if (!(is_finite(own) && own >= 0) && wrong_class == kNone) wrong_class = j;
    }
  }
  count = block_sum(count, memory.count);
  weight = block_sum(weight, memory.weight);
  wrong_row = block_combine(wrong_row, kNone, memory.first, Smaller());
  wrong_class = block_combine(wrong_class, kNone, memory.first, Smaller());
  if (threadIdx.x == 0) parts[blockIdx.x] = {count, weight, wrong_row, wrong_class};
}

__device__ __forceinline__ void note_fault(const TargetTask& task, std::int64_t wrong_row,
                                           std::int64_t wrong_class, LossTotals& totals) {
  if (wrong_class != kNone) {
    totals.fault = LossFault::class_weight;
    totals.where = wrong_class;
    totals.value = static_cast<double>(task.class_weight[wrong_class]);
  } else if (wrong_row != kNone) {
    totals.where = wrong_row;
    totals.target = index_at(task.targets, wrong_row);
    const bool in_range = totals.target >= 0 && totals.target < task.classes;
    totals.fault = in_range ? LossFault::token_weight : LossFault::target;
    totals.value = in_range ? static_cast<double>(task.token_weight[wrong_row]) : 0.0;
  }
}

// The parts are fetched side by side, then one thread adds them in order.
__global__ void __launch_bounds__(kTargetParts)
    totals_kernel(const TargetTask task, const TargetPart* parts, LossTotals* result) {
  struct Memory {
    TargetPart parts[kTargetParts];
  };
  Memory& memory = shared_memory<Memory>();
  memory.parts[threadIdx.x] = parts[threadIdx.x];
  __syncthreads();
  if (threadIdx.x != 0) return;
  LossTotals totals{};
  std::int64_t wrong_row = kNone, wrong_class = kNone;
  for (const TargetPart& part : memory.parts) {
    totals.n_valid += part.n_valid;
    totals.weight += part.weight;
    wrong_row = part.wrong_row < wrong_row ? part.wrong_row : wrong_row;
    wrong_class = part.wrong_class < wrong_class ? part.wrong_class : wrong_class;
  }
  set_factor(task.reduction, totals);
  note_fault(task, wrong_row, wrong_class, totals);
  *result = totals;
}

__global__ void finish_kernel(const TargetTask task, const LossTotals* totals,
                              CrossEntropyStatus* status) {
  CrossEntropyStatus result;
  result.result = result_of(task.reduction, *totals);
  result.fault = totals->fault;
  result.where = totals->where;
  result.target = totals->target;
  result.value = totals->value;
  result.classes = task.classes;
  result.ignore_index = task.ignore_index;
  *status = result;
}

}  // namespace

void launch_start(const LossTask& task, TargetPart* parts, LossTotals* totals,
                  cudaStream_t stream) {
  const TargetTask on_device = task_of(task);
  launch(parts_kernel, {kTargetParts, kThreads, sizeof(PartMemory)}, stream, on_device, parts);
  launch(totals_kernel, {1, kTargetParts, kTargetParts * sizeof(TargetPart)}, stream, on_device,
         parts, totals);
}

void launch_finish(const LossTask& task, const LossTotals* totals, CrossEntropyStatus* status,
                   cudaStream_t stream) {
  launch(finish_kernel, {1, 1}, stream, task_of(task), totals, status);
}

}  // namespace flatstep::cuda
