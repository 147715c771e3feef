// The ends of a group's rows, a vector of them at a time.
#pragma once

#include <algorithm>

#include "cpu/kernels/cross_entropy_block.h"
#include "element/cross_entropy_row.h"

namespace flatstep::cpu::FLATSTEP_ISA {
namespace {

// Puts a row that is one block, with classes that are not masked, into the group: what add_blocks
// makes of it, in less time.
inline void take_block(const CrossEntropyBlock& block, CrossEntropyGroup& group, int i) {
  group.largest[i] = block.largest;
  group.ties[i] = static_cast<double>(block.ties);
  group.maximum[i] = block.maximum;
  group.shift[i] = block.shift;
  group.exponent[i] = static_cast<double>(block.exponent);
  group.tops[i] = block.total - block.rest;
  group.rest[i] = block.rest;
  group.weighted[i] = block.weighted;
  group.logits[i] = block.logits;
  group.allowed[i] = block.allowed;
  group.unmasked[i] = static_cast<double>(block.unmasked);
}

// Adds up the blocks of row i of the group.
inline void add_blocks(const CrossEntropyBlock* blocks, std::int64_t count,
                       CrossEntropyGroup& group, int i) {
  if (count == 1 && blocks->maximum > -kInfinite<double>) return take_block(*blocks, group, i);
  const CrossEntropyBlock* top = blocks;
  for (std::int64_t b = 1; b < count; ++b) {
    if (blocks[b].maximum > top->maximum) top = blocks + b;
  }
  RowSums<double> row = empty_row(*top);
  double largest = -kInfinite<double>;
  std::int64_t ties = 0;
  for (std::int64_t b = 0; b < count; ++b) {
    largest = std::max(largest, blocks[b].largest);
    ties += blocks[b].ties;
    add_block(blocks[b], row);
  }
  group.largest[i] = largest;
  group.ties[i] = static_cast<double>(ties);
  group.maximum[i] = row.maximum;
  group.shift[i] = row.shift;
  group.exponent[i] = row.exponent;
  group.tops[i] = row.tops;
  group.rest[i] = row.rest;
  group.weighted[i] = row.weighted;
  group.logits[i] = row.logits;
  group.allowed[i] = row.allowed;
  group.unmasked[i] = row.unmasked;
}

struct RowWeights {
  double token[CrossEntropyGroup::kRows], target[CrossEntropyGroup::kRows];
  double upstream[CrossEntropyGroup::kRows];
};

// Losses, statistics and gradient factors of all rows of the group.
inline void finish_group(const CrossEntropyRows& rows, const RowWeights& weights,
                         CrossEntropyGroup& group) {
  using F = Vector<double>;
  const RowOptions options{rows.label_smoothing, rows.z_loss, Softcap(rows.softcap, rows.dtype)};
  for (int i = 0; i < group.rows; i += static_cast<int>(kLanesOf<double>)) {
    const auto load = [i](const double* array) { return load_vector(array + i); };
    const auto store = [i](double* array, F value) { store_vector<double>(array + i, value); };
    const RowSums<F> sums{load(group.maximum), load(group.shift),   load(group.exponent),
                          load(group.tops),    load(group.rest),    load(group.weighted),
                          load(group.logits),  load(group.allowed), load(group.unmasked)};
    const RowTarget<F> target{load(group.target_logit), load(weights.token), load(weights.target),
                              load(weights.upstream)};
    const RowResult<F> result = finish_row(sums, target, options);
    store(group.loss, result.loss);
    store(group.lse, result.lse);
    store(group.entropy, result.entropy);
    store(group.weight, result.weight);
    store(group.factor, result.factor);
    store(group.spread, result.spread);
    store(group.at_target, result.at_target);
  }
}

}  // namespace
}  // namespace flatstep::cpu::FLATSTEP_ISA
