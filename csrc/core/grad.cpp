#include "flatstep/grad.h"

#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/checks.h"
#include "core/optim.h"
#include "core/step_scale.h"

namespace flatstep {
namespace {

// The norm, and where the first element is that is not finite.
GradNorm finite_norm(const std::vector<const void*>& grads, DType dtype, GradPartials& partials,
                     const Device& device) {
  const BackendHandle backend = backend_of(device);
  GradNorm norm;
  norm.norm = backend->grad_norm(grads, dtype, partials);
  if (!std::isfinite(norm.norm)) {
    const GradNorm beyond = backend->first_beyond(grads, dtype, partials, largest_of(dtype));
    norm.nonfinite_segment = beyond.nonfinite_segment;
    norm.nonfinite_index = beyond.nonfinite_index;
  }
  return norm;
}

std::vector<std::int64_t> sizes_of(const Layout& layout) {
  std::vector<std::int64_t> sizes;
  for (const LayoutEntry& entry : layout.entries()) sizes.push_back(entry.size);
  return sizes;
}

void add_all(Buffers& buffers, const std::vector<const void*>& data,
             const std::vector<std::int64_t>& sizes, DType dtype, const char* name) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    buffers.add(data[i], sizes[i] * size_of(dtype), name, i);
  }
}

}  // namespace

GradPartials::GradPartials(std::vector<std::int64_t> tensor_sizes)
    : sizes(std::move(tensor_sizes)) {
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) {
    first_chunk.push_back(total);
    total += (size + kChunk - 1) / kChunk;
  }
  first_chunk.push_back(total);
  sums.resize(static_cast<std::size_t>(total));
}

GradPartials::GradPartials(const Layout& layout) : GradPartials(sizes_of(layout)) {}

bool GradPartials::are_of(const Layout& layout) const {
  const auto same = [](std::int64_t size, const LayoutEntry& entry) { return size == entry.size; };
  return !on_device && std::equal(sizes.begin(), sizes.end(), layout.entries().begin(),
                                  layout.entries().end(), same);
}

double GradPartials::norm() const {
  if (on_device) return backend_of(device)->norm_of(*this);
  double sum = 0;
  for (std::size_t first = 0; first < sums.size(); first += kGroup) {
    const std::size_t last = std::min(first + kGroup, sums.size());
    double group = 0;
    for (std::size_t chunk = first; chunk < last; ++chunk) group += sums[chunk];
    sum += group;
  }
  return std::sqrt(sum);
}

GradNorm grad_norm(const std::vector<const void*>& grads, const std::vector<std::int64_t>& sizes,
                   DType dtype, Device device, GradPartials* kept) {
  check_grads(grads, sizes, dtype, "grads");
  if (kept != nullptr && device.type != DeviceType::cpu) {
    fail("partials", "some to fill for gradients on a CUDA device", "none");
  }
  GradPartials partials(sizes);
  const GradNorm norm = finite_norm(grads, dtype, partials, device);
  if (kept != nullptr) *kept = std::move(partials);
  return norm;
}

GradNorm clip_grad_norm(const std::vector<void*>& grads, const std::vector<std::int64_t>& sizes,
                        DType dtype, double max_norm, Device device) {
  require(std::isfinite(max_norm) && max_norm > 0, "max_norm", max_norm, "a finite number > 0");
  const std::vector<const void*> inputs(grads.begin(), grads.end());
  check_grads(inputs, sizes, dtype, "grads");
  Buffers buffers;
  add_all(buffers, inputs, sizes, dtype, "grads");
  buffers.require_disjoint();
  GradPartials partials(sizes);
  const GradNorm norm = finite_norm(inputs, dtype, partials, device);
  const double factor = clip_scale(norm.norm, max_norm);
  if (std::isfinite(norm.norm) && factor < 1) {
    backend_of(device)->scale(grads, dtype, partials, factor);
  }
  return norm;
}

GradPartials accumulate(const std::vector<void*>& totals, const std::vector<const void*>& src,
                        const std::vector<std::int64_t>& sizes, const AccumulateOptions& options,
                        Device device) {
  if (options.dtype != DType::f32 && options.dtype != DType::f64) {
    fail("totals", name_of(options.dtype), "float32 or float64");
  }
  const std::vector<const void*> outputs(totals.begin(), totals.end());
  check_grads(outputs, sizes, options.dtype, "totals");
  check_grads(src, sizes, options.src_dtype, "src");
  if ((options.src_dtype == DType::f64) != (options.dtype == DType::f64)) {
    fail("src", name_of(options.src_dtype),
         options.dtype == DType::f64 ? "float64, like totals" : "float32, bfloat16 or float16");
  }
  require(std::fabs(options.scale) <= largest_of(options.dtype), "scale", options.scale,
          "a finite number of the type of the totals");
  Buffers buffers;
  add_all(buffers, outputs, sizes, options.dtype, "totals");
  add_all(buffers, src, sizes, options.src_dtype, "src");
  buffers.require_disjoint();
  GradPartials partials(sizes);
  partials.device = device;
  backend_of(device)->accumulate(totals, src, options, partials);
  return partials;
}

}  // namespace flatstep
