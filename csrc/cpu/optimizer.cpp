// The update of all tensors, chunk by chunk. Kernels compute on f32 (f64 for f64 parameters);
// what is stored in another form goes through a few KB of buffers in the nearest cache.
#include "cpu/optimizer.h"

#include <cstring>

#include "core/optim.h"
#include "cpu/chunks.h"
#include "cpu/convert.h"

#define FLATSTEP_ELEMENTS cpu
#include "element/update_scalars.h"

namespace flatstep::cpu {
namespace {

// Elements that go through the buffers at a time.
constexpr std::int64_t kStretch = 1024;
static_assert(kStretch % kStateBlock == 0 && kStateBlock == kRoundingBlock);

bool same_group(const Segment& a, const Segment& b) {
  const bool same_betas =
      a.betas.has_value() == b.betas.has_value() &&
      (!a.betas || (a.betas->beta1 == b.betas->beta1 && a.betas->beta2 == b.betas->beta2));
  return same_betas && a.lr_scale == b.lr_scale && a.weight_decay == b.weight_decay;
}

// Of each segment; often they take turns in two groups, with decay and without.
template <class T>
std::vector<UpdateScalars<T>> all_scalars(const UpdateTask& task) {
  const auto& segments = task.segments;
  std::vector<UpdateScalars<T>> all;
  all.reserve(segments.size());
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const std::size_t earliest = i - std::min<std::size_t>(i, 2);
    std::size_t like = i;
    for (std::size_t j = earliest; j < i; ++j)
      like = same_group(segments[j], segments[i]) ? j : like;
    all.push_back(like < i ? all[like]
                           : scalars_of<T>(update_group(task.options, segments[i]),
                                           task.step_options.lr, task.step, task.grad_multiplier));
  }
  return all;
}

template <class T>
T* at(void* base, std::int64_t index) {
  return base == nullptr ? nullptr : static_cast<T*>(base) + index;
}

// Parameters, gradients and full state of the type of the arithmetic: updated where they are.
template <class T>
void update_in_place(const UpdateTask& task, const UpdateFunction<T> (&functions)[3],
                     const Segment& segment, void* grad, std::int64_t begin, std::int64_t end,
                     const UpdateScalars<T>& scalars) {
  constexpr std::int64_t kTorchVector = 32 / static_cast<std::int64_t>(sizeof(T));
  const auto run = [&](Rounding rounding, std::int64_t first, std::int64_t last) {
    if (first == last) return;
    const UpdateArrays<T> arrays{at<T>(segment.param, first), at<T>(grad, first),
                                 at<T>(segment.state1, first), at<T>(segment.state2, first),
                                 at<T>(segment.state3, first)};
    functions[static_cast<int>(rounding)](arrays, last - first, scalars);
  };
  if (task.options.mode == OptimizerMode::native) {
    run(Rounding::native, begin, end);
  } else {
    const std::int64_t whole = end - end % kTorchVector;
    run(Rounding::torch, begin, whole);
    run(Rounding::torch_tail, whole, end);
  }
}

struct Buffers {
  alignas(64) float param[kStretch], grad[kStretch];
  alignas(64) std::uint16_t random[kStretch];
};

// The same for a block that is not whole: copies padded with zeros.
struct PaddedBlock {
  alignas(64) float param[kStateBlock] = {}, grad[kStateBlock] = {};
  alignas(64) std::uint8_t codes1[kStateBlock] = {}, codes2[kStateBlock] = {};
};

void update_low_bit(Algorithm algorithm, const LowBitArrays& arrays, std::int64_t size,
                    const UpdateScalars<float>& scalars) {
  const auto function = kernels().update_low_bit[static_cast<int>(algorithm)];
  const std::int64_t whole = size / kStateBlock * kStateBlock;
  if (whole > 0) function(arrays, whole, scalars);
  if (whole == size) return;
  PaddedBlock block;
  const auto move = [&](auto* to, const auto* from) {
    if (from != nullptr) std::copy_n(from, size - whole, to);
  };
  const auto behind = [&](auto* array) { return array == nullptr ? nullptr : array + whole; };
  move(block.param, behind(arrays.param));
  move(block.grad, behind(arrays.grad));
  move(block.codes1, behind(arrays.codes1));
  move(block.codes2, behind(arrays.codes2));
  const std::int64_t index = whole / kStateBlock;
  function({block.param, block.grad, arrays.random + whole, block.codes1, arrays.scales1 + index,
            block.codes2, arrays.scales2 == nullptr ? nullptr : arrays.scales2 + index, block.param,
            block.grad, 0, 0},
           kStateBlock, scalars);
  move(behind(arrays.param), block.param);
  move(behind(arrays.codes1), block.codes1);
  if (arrays.codes2 != nullptr) move(behind(arrays.codes2), block.codes2);
}

// Up to kStretch elements, `begin` a multiple of it, through the buffers.
void update_stretch(const UpdateTask& task, UpdateFunction<float> function, std::size_t number,
                    std::int64_t begin, std::int64_t size, const UpdateScalars<float>& scalars,
                    Buffers& buffers) {
  const Segment& segment = task.segments[number];
  // SGD without momentum has no state.
  const bool low_bit = task.options.state == StateFormat::block8 && segment.state1 != nullptr;
  const bool stochastic = task.options.dtype == DType::bf16;
  float* param = buffers.param;
  if (stochastic) {
    widen(at<bf16_bits>(segment.param, begin), DType::bf16, size, buffers.param);
  } else {
    param = at<float>(segment.param, begin);
  }
  const float* grad = buffers.grad;
  if (task.grad_dtype == DType::f32) {
    grad = at<float>(task.grads[number], begin);
  } else {
    widen(at<bf16_bits>(task.grads[number], begin), task.grad_dtype, size, buffers.grad);
  }
  if (low_bit || stochastic) {
    kernels().rounding_bits({task.options.seed, task.step, static_cast<std::int64_t>(number)},
                            begin, (size + kStateBlock - 1) / kStateBlock * kStateBlock,
                            buffers.random);
  }
  if (low_bit) {
    const std::int64_t block = begin / kStateBlock;
    const std::int64_t param_bytes = size_of(task.options.dtype);
    const std::int64_t grad_bytes = size_of(task.grad_dtype);
    update_low_bit(
        task.options.algorithm,
        {param, grad, buffers.random, at<std::uint8_t>(segment.state1, begin),
         at<std::uint16_t>(segment.scale1, block), at<std::uint8_t>(segment.state2, begin),
         at<std::uint16_t>(segment.scale2, block), at<char>(segment.param, begin * param_bytes),
         at<char>(task.grads[number], begin * grad_bytes), param_bytes, grad_bytes},
        size, scalars);
  } else {
    function({param, grad, at<float>(segment.state1, begin), at<float>(segment.state2, begin),
              at<float>(segment.state3, begin)},
             size, scalars);
  }
  if (stochastic) {
    kernels().round_to_bf16(buffers.param, buffers.random, size,
                            at<bf16_bits>(segment.param, begin));
  }
}

void finish_chunk(const UpdateTask& task, std::size_t number, std::int64_t begin,
                  std::int64_t end) {
  const Segment& segment = task.segments[number];
  if (segment.bf16_copy != nullptr) {
    narrow(at<float>(segment.param, begin), end - begin, at<bf16_bits>(segment.bf16_copy, begin),
           DType::bf16);
  }
  if (task.step_options.zero_grad) {
    const std::int64_t bytes = size_of(task.grad_dtype);
    std::memset(at<char>(task.grads[number], begin * bytes), 0,
                static_cast<std::size_t>((end - begin) * bytes));
  }
}

template <class T>
void update_all(const UpdateTask& task, const GradPartials& table,
                const UpdateFunction<T> (&all_functions)[3][3]) {
  const auto& functions = all_functions[static_cast<int>(task.options.algorithm)];
  const std::vector<UpdateScalars<T>> scalars = all_scalars<T>(task);
  const bool in_place = std::is_same_v<T, double> ||
                        (task.options.dtype == DType::f32 && task.grad_dtype == DType::f32 &&
                         task.options.state == StateFormat::full);
  for_each_chunk(table, Order::backwards,
                 [&](std::size_t i, std::int64_t begin, std::int64_t end, std::int64_t) {
                   if constexpr (std::is_same_v<T, float>) {
                     if (!in_place) {
                       Buffers buffers;
                       for (std::int64_t first = begin; first < end; first += kStretch) {
                         update_stretch(task, functions[0], i, first,
                                        std::min(kStretch, end - first), scalars[i], buffers);
                       }
                     }
                   }
                   if (in_place) {
                     update_in_place(task, functions, task.segments[i], task.grads[i], begin, end,
                                     scalars[i]);
                   }
                   finish_chunk(task, i, begin, end);
                 });
}

}  // namespace

void update(const UpdateTask& task, const GradPartials& chunks) {
  if (task.options.dtype == DType::f64) {
    update_all<double>(task, chunks, kernels().update_f64);
  } else {
    update_all<float>(task, chunks, kernels().update_f32);
  }
}

}  // namespace flatstep::cpu
