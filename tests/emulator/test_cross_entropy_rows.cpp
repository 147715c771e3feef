// Rows among others: with the first or the last class for a target, ignored, beside rows that touch
// theirs, and taken in turn by the same threads.
#include <cstdio>

#include "emulator.h"
#include "loss_case.h"

namespace loss_case {
namespace {

void name_failure(int failures_before, const Case& c) {
  if (failures == failures_before) return;
  std::printf("  in %lld x %lld, type %d to %d, shape %d/%d/%d/%d, cap %g, shift %lld\n",
              static_cast<long long>(c.rows), static_cast<long long>(c.classes),
              static_cast<int>(c.dtype), static_cast<int>(c.grad_dtype), c.shape.cluster,
              c.shape.parts, c.shape.warps, c.shape.tiles, c.softcap,
              static_cast<long long>(c.shift));
}

// Every kernel that takes a row of few classes.
template <class Visit>
void with_kernels(Case c, const Visit& visit) {
  visit(c);
  c.shape = {1, 1, 2, 2};
  visit(c);
  c.shape = {2, 2, 1, 2};
  visit(c);
  c.shape = {0, 0, 0, 0};
  c.softcap = 3;
  visit(c);
}

void test_edges(const Case& c) {
  const int before = failures;
  Input in = make_input(c, 11);
  in.targets = {kIgnore, 0, c.classes - 1, kIgnore, c.classes / 2};
  compare(c, in, run(c, in));
  name_failure(before, c);
}

}  // namespace

// Rows so short that none of their elements begins a word, at every distance from one.
void test_targets() {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t classes : {1, 2, 3, 7, 8, 9, 130}) {
      for (const std::int64_t shift : {0, 1, 3, 7}) {
        if (dtype == DType::f32 && shift > 3) continue;
        Case c = case_of(5, classes);
        c.dtype = c.grad_dtype = dtype;
        c.shift = shift;
        c.padding = 1 + shift % 2;
        with_kernels(c, test_edges);
        if (dtype != DType::f32) continue;
        c.in_place = false;
        c.grad_dtype = DType::bf16;
        c.gradient_shift = 3;
        with_kernels(c, test_edges);
      }
    }
  }
}

// More rows than are launched: the same threads take several, in the memory that they have.
void test_rounds(int orders) {
  Case c = case_of(7, 600);
  c.ties = c.class_weight = c.token_weight = true;
  c.label_smoothing = 0.1;
  c.z_loss = 0.01;
  with_kernels(c, [&](Case each) {
    const int before = failures;
    Input in = make_input(each, 12);
    in.targets[3] = kIgnore;
    each.most_rows = each.rows;
    const Output at_once = run(each, in);
    compare(each, in, at_once);
    for (const std::int64_t most_rows : {1, 3}) {
      each.most_rows = most_rows;
      emulator::for_each_order(4 * orders, [&] {
        const Output out = run(each, in);
        CHECK(out.gradient == at_once.gradient && out.loss == at_once.loss);
        CHECK(out.totals.loss == at_once.totals.loss);
        CHECK(out.totals.correct == at_once.totals.correct);
      });
    }
    name_failure(before, each);
  });
}

// Out of place, where words of the gradient begin, none of the logits does.
void test_gradient_elsewhere() {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    Case c{};
    c.dtype = dtype;
    c.in_place = false;
    c.shift = 1;
    c.gradient_shift = 2;
    c.padding = 5;
    for (const DType grad_dtype : {dtype, DType::bf16, DType::f16}) {
      if (dtype != DType::f32 && grad_dtype != dtype) continue;
      c.grad_dtype = grad_dtype;
      with_shapes(c, [&](const Case& sized) {
        const int before = failures;
        const Input in = make_input(sized, 13);
        compare(sized, in, run(sized, in));
        name_failure(before, sized);
      });
    }
  }
}

}  // namespace loss_case
