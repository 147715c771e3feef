// Gradients as a whole: global norm, clipping and accumulation.
//
// The norm is the square root of the sum of all squares. Squares are summed in f64 over fixed
// chunks of 4096 elements of each tensor, groups of 256 chunks (of all tensors, one after the
// other) are added in order, then the groups in order. So the bits do not depend on the number of
// threads or the device, and 1e20 neither overflows nor 1e-25 underflows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "flatstep/export.h"
#include "flatstep/layout.h"
#include "flatstep/types.h"

namespace flatstep {

struct GradNorm {
  double norm = 0.0;  // not finite when an element is not
  std::int64_t nonfinite_segment = -1;
  std::int64_t nonfinite_index = -1;
};

// The sums of squares that a norm is made of. Whoever writes a gradient last can fill them while
// it is in the cache, and Optimizer::step then need not read it for the norm.
struct GradPartials {
  static constexpr std::int64_t kChunk = 4096;  // elements
  static constexpr std::size_t kGroup = 256;    // chunks

  GradPartials() = default;
  explicit FLATSTEP_API GradPartials(std::vector<std::int64_t> sizes);
  // Of a flat buffer.
  explicit FLATSTEP_API GradPartials(const Layout& layout);

  std::vector<std::int64_t> sizes;        // of the tensors, in elements
  std::vector<std::int64_t> first_chunk;  // of each tensor, and the total at the end
  std::vector<double> sums;               // one a chunk; empty where a CUDA device has them
  std::shared_ptr<void> on_device;        // what that device keeps instead
  Device device;                          // of the gradients

  // Where the sums of a tensor begin.
  std::size_t first_index(std::size_t tensor) const {
    return static_cast<std::size_t>(first_chunk[tensor]);
  }
  // Whether they are sums of the tensors of a flat buffer, in the host's memory.
  FLATSTEP_API bool are_of(const Layout& layout) const;
  std::int64_t chunks() const { return first_chunk.empty() ? 0 : first_chunk.back(); }
  // sqrt of the sum of all, in the order above. Where a CUDA device has the sums, this waits for
  // them.
  FLATSTEP_API double norm() const;
};

// dtype: f32, bf16, f16, or on the CPU f64. `partials`, on the CPU alone, is filled with the sums,
// for an optimizer's step over these gradients. Throws InvalidArgument for buffers that are null or
// misaligned, and for partials of gradients on a CUDA device.
FLATSTEP_API GradNorm grad_norm(const std::vector<const void*>& grads,
                                const std::vector<std::int64_t>& sizes, DType dtype,
                                Device device = {}, GradPartials* partials = nullptr);

// Multiplies all gradients by min(1, max_norm / (norm + 1e-6)), as PyTorch, and returns the norm
// before. Left as they are: gradients of which one is not finite, and those of f64 whose norm is
// beyond the range of doubles.
FLATSTEP_API GradNorm clip_grad_norm(const std::vector<void*>& grads,
                                     const std::vector<std::int64_t>& sizes, DType dtype,
                                     double max_norm, Device device = {});

struct AccumulateOptions {
  DType dtype = DType::f32;      // of the totals: f32, or on the CPU f64
  DType src_dtype = DType::f32;  // f32, bf16 or f16 into f32; f64 into f64
  double scale = 1.0;            // of what is added
  bool overwrite = false;        // totals = scale * src, whatever they held
};

// totals = fma(scale, src, totals), tensor by tensor, and the partial sums of the norm of the new
// totals from the same visit. `scale` is rounded to the type of the totals.
// Throws InvalidArgument for bad options, or buffers that are null, misaligned or overlap.
FLATSTEP_API GradPartials accumulate(const std::vector<void*>& totals,
                                     const std::vector<const void*>& src,
                                     const std::vector<std::int64_t>& sizes,
                                     const AccumulateOptions& options = {}, Device device = {});

}  // namespace flatstep
