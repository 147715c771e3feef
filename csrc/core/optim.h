// Checks that the optimizers, gradients and layouts share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tasks.h"
#include "flatstep/layout.h"
#include "flatstep/optim.h"

namespace flatstep {

// Buffers that must not share memory.
class FLATSTEP_API Buffers {
 public:
  // As name[index] in messages.
  void add(const void* data, std::int64_t bytes, const char* name, std::size_t index);
  // Throws InvalidArgument naming two that overlap.
  void require_disjoint();

 private:
  struct Interval {
    std::uintptr_t begin, end;
    const char* name;
    std::size_t index;
  };
  std::vector<Interval> intervals_;
};

std::string numbered(const char* name, std::size_t index);

void check_betas(const Betas& betas);
void check_options(const OptimizerOptions& options);
void check_step(const StepOptions& step, const OptimizerOptions& options);
// Everything about one tensor; adds what it owns to `owned`. Clears pointers that are not used.
void check_segment(const OptimizerOptions& options, std::size_t index, Segment& segment,
                   Buffers& owned);
// `name` is that of the list in messages.
void check_grads(const std::vector<const void*>& grads, const std::vector<std::int64_t>& sizes,
                 DType dtype, const char* name);

std::vector<std::int64_t> sizes_of(const std::vector<Segment>& segments);

// What the scalars of a segment's update are made of.
UpdateGroup update_group(const OptimizerOptions& options, const Segment& segment);

// Of a gradient that a step can take. Second moments are made of squares: one that overflows would
// be infinite, and from the next step on not a number.
double largest_gradient(const OptimizerOptions& options);

// The largest finite magnitude of the type in which arithmetic on `dtype` is done.
double largest_of(DType dtype);

}  // namespace flatstep
