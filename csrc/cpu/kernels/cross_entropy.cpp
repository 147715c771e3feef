// Rows of cross-entropy and their gradient: the sums over each row's blocks of classes, the losses
// of a group of rows, then the gradient from the exponentials that were kept.
#include <algorithm>
#include <type_traits>

#include "cpu/kernels/cross_entropy_row.h"
#include "cpu/kernels/cross_entropy_sums.h"
#include "cpu/kernels/tables.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

template <class T>
bool prepare(const CrossEntropyRows& rows, std::int64_t row, CrossEntropyGroup& group) {
  const std::int64_t target = target_of(rows, row);
  if (target < 0) {
    using A = Accumulate<T>;
    for (void* output : {rows.loss, rows.lse, rows.entropy}) {
      if (output != nullptr) static_cast<A*>(output)[row] = 0;
    }
    if (rows.grad != nullptr) {
      std::memset(static_cast<T*>(rows.grad) + row * rows.grad_row_stride, 0,
                  static_cast<std::size_t>(rows.classes) * sizeof(T));
    }
    return false;
  }
  group.row[group.rows] = row;
  group.target[group.rows] = target;
  // Before the gradient, which may lie in the logits' place, is written.
  group.target_logit[group.rows] = Element<T>::load(logits_of<T>(rows, row)[target]);
  ++group.rows;
  return true;
}

template <class T>
void sum_blocks(const CrossEntropyRows& rows, const CrossEntropyGroup& group, std::int64_t begin,
                std::int64_t end, const CrossEntropyScratch& scratch) {
  // Of so many blocks, those where the maximum so far is reached or exceeded are few.
  constexpr std::int64_t kManyBlocks = 4;
  const std::int64_t blocks = block_count(rows.classes);
  with_smoothing(rows, [&](auto smoothing) {
    if (blocks == 1) return sum_short_rows<smoothing, T>(rows, group, scratch);
    const auto sum = blocks < kManyBlocks ? sum_row<smoothing, Rest::now, T>
                                          : sum_row<smoothing, Rest::later, T>;
    for (int i = 0; i < group.rows; ++i) sum(rows, group, i, begin, end, scratch);
  });
}

template <class A>
CrossEntropySums finish(const CrossEntropyRows& rows, CrossEntropyGroup& group,
                        const CrossEntropyScratch& scratch) {
  const auto element = [](const void* array, std::int64_t index) {
    return array ? static_cast<double>(static_cast<const A*>(array)[index]) : 1.0;
  };
  const std::int64_t blocks = block_count(rows.classes);
  RowWeights weights{};
  for (int i = 0; i < group.rows; ++i) {
    add_blocks(scratch.blocks + i * blocks, blocks, group, i);
    const std::int64_t row = group.row[i];
    weights.token[i] = element(rows.token_weight, row);
    weights.target[i] = element(rows.class_weight, group.target[i]);
    weights.upstream[i] = rows.grad_output * element(rows.grad_output_rows, row) * weights.token[i];
  }
  finish_group(rows, weights, group);

  CrossEntropySums sums;
  const auto store = [](void* array, std::int64_t index, double value) {
    if (array) static_cast<A*>(array)[index] = static_cast<A>(value);
  };
  for (int i = 0; i < group.rows; ++i) {
    store(rows.loss, group.row[i], group.loss[i]);
    store(rows.lse, group.row[i], group.lse[i]);
    store(rows.entropy, group.row[i], group.entropy[i]);
    sums.loss += group.loss[i];
    const bool correct =
        is_correct(group.target_logit[i], group.largest[i], group.ties[i], group.rest[i]);
    sums.correct += correct ? 1 : 0;
  }
  return sums;
}

template <Smoothing kSmoothing, bool Capped, class T>
void write_row(const CrossEntropyRows& rows, const CrossEntropyGroup& group, int i,
               std::int64_t begin, std::int64_t end, const CrossEntropyScratch& scratch) {
  using A = Accumulate<T>;
  T* grad = static_cast<T*>(rows.grad) + group.row[i] * rows.grad_row_stride;
  const std::int64_t last = std::min(end * kBlock, rows.classes);
  if (group.weight[i] == 0) {
    std::memset(grad + begin * kBlock, 0,
                static_cast<std::size_t>(last - begin * kBlock) * sizeof(T));
    return;
  }
  if (std::isnan(group.factor[i])) {
    std::fill(grad + begin * kBlock, grad + last,
              Element<T>::store(std::numeric_limits<A>::quiet_NaN()));
    return;
  }
  const A* exponentials = exponentials_of<T>(rows, group, i, scratch);
  const auto* slopes = static_cast<const A*>(scratch.slopes) + (Capped ? i * rows.classes : 0);
  const auto* weights = static_cast<const A*>(rows.class_weight);
  const A spread = static_cast<A>(group.spread[i]);
  const std::int64_t count = block_count(rows.classes);
  const CrossEntropyBlock* blocks = scratch.blocks + i * count;
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t first = index * kBlock;
    const std::int64_t size = std::min(kBlock, rows.classes - first);
    const double ratio =
        count == 1 ? 1.0 : unit_ratio(blocks[index], group.shift[i], group.exponent[i]);
    const A factor = static_cast<A>(group.factor[i] * ratio);
    const auto fill = blocks[index].unmasked == size
                          ? gradient_block<kSmoothing, Masked::none, Capped, T, A>
                          : gradient_block<kSmoothing, Masked::some, Capped, T, A>;
    fill(exponentials + first, size, factor, spread,
         kSmoothing == Smoothing::weighted ? weights + first : nullptr,
         Capped ? slopes + first : nullptr, grad + first);
  }
  const std::int64_t target = group.target[i];
  if (target >= begin * kBlock && target < last) {
    grad[target] = Element<T>::store(static_cast<A>(group.at_target[i]));
  }
}

template <class T>
void write_gradient(const CrossEntropyRows& rows, const CrossEntropyGroup& group,
                    std::int64_t begin, std::int64_t end, const CrossEntropyScratch& scratch) {
  with_smoothing(rows, [&](auto smoothing) {
    for (int i = 0; i < group.rows; ++i) {
      if (rows.softcap > 0) {
        write_row<smoothing, true, T>(rows, group, i, begin, end, scratch);
      } else {
        write_row<smoothing, false, T>(rows, group, i, begin, end, scratch);
      }
    }
  });
}

template <class T>
CrossEntropySums cross_entropy_rows(const CrossEntropyRows& rows, std::int64_t begin,
                                    std::int64_t end, const CrossEntropyScratch& scratch) {
  const std::int64_t blocks = block_count(rows.classes);
  const std::int64_t group_rows = group_rows_of(rows.classes);
  CrossEntropySums sums;
  CrossEntropyGroup group{};
  for (std::int64_t row = begin; row < end;) {
    group.rows = 0;
    for (; row < end && group.rows < group_rows; ++row) prepare<T>(rows, row, group);
    sum_blocks<T>(rows, group, 0, blocks, scratch);
    sums.correct += finish<Accumulate<T>>(rows, group, scratch).correct;
    // Row by row: the sum must not depend on the size of a group.
    for (int i = 0; i < group.rows; ++i) sums.loss += group.loss[i];
    if (rows.grad != nullptr) write_gradient<T>(rows, group, 0, blocks, scratch);
  }
  return sums;
}

template <class T>
CrossEntropyKernels kernels_of() {
  return {cross_entropy_rows<T>, prepare<T>, sum_blocks<T>, finish<Accumulate<T>>,
          write_gradient<T>};
}

}  // namespace

void fill_loss_kernels(KernelTable& table) {
  table.cross_entropy_f32 = kernels_of<float>();
  table.cross_entropy_f64 = kernels_of<double>();
  table.cross_entropy_bf16 = kernels_of<bf16_bits>();
  table.cross_entropy_f16 = kernels_of<f16_bits>();
}

}  // namespace flatstep::cpu::FLATSTEP_ISA
