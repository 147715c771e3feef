#include "flatstep/optim.h"

#include <algorithm>
#include <limits>

#include "core/backend.h"
#include "core/checks.h"

namespace flatstep {
namespace {

struct Interval {
  std::uintptr_t begin, end;
  std::string name;
};

void add_interval(std::vector<Interval>& all, const void* data, std::int64_t size, DType dtype,
                  const std::string& name) {
  if (size == 0 || data == nullptr) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  all.push_back({begin, begin + static_cast<std::uintptr_t>(size * size_of(dtype)), name});
}

void require_disjoint(std::vector<Interval>& all) {
  std::sort(all.begin(), all.end(),
            [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < all.size(); ++i) {
    if (all[i].begin < all[i - 1].end) {
      fail(all[i].name, "memory that overlaps " + all[i - 1].name, "memory of its own");
    }
  }
}

void check_options(const OptimizerOptions& o) {
  if (o.dtype != DType::f32 && o.dtype != DType::f64) {
    fail("params", name_of(o.dtype), "float32 or float64");
  }
  require(o.beta1 >= 0 && o.beta1 < 1, "betas", o.beta1, "beta1 in [0, 1)");
  require(o.beta2 >= 0 && o.beta2 < 1, "betas", o.beta2, "beta2 in [0, 1)");
  require(std::isfinite(o.eps) && o.eps >= 0, "eps", o.eps, "a finite number >= 0");
  require(std::isfinite(o.weight_decay) && o.weight_decay >= 0, "weight_decay", o.weight_decay,
          "a finite number >= 0");
  require(o.momentum >= 0 && o.momentum < 1, "momentum", o.momentum, "a number in [0, 1)");
  require(std::isfinite(o.dampening), "dampening", o.dampening, "a finite number");
  if (o.nesterov && (o.momentum <= 0 || o.dampening != 0)) {
    fail("nesterov", "true", "false, unless momentum > 0 and dampening = 0");
  }
  require(o.max_consecutive_skips >= 0, "max_consecutive_skips",
          std::int64_t{o.max_consecutive_skips}, "a number >= 0");
}

void check_step(const StepOptions& o) {
  require(std::isfinite(o.lr) && o.lr >= 0, "lr", o.lr, "a finite number >= 0");
  if (o.max_norm) {
    require(std::isfinite(*o.max_norm) && *o.max_norm > 0, "max_norm", *o.max_norm,
            "a finite number > 0");
  }
  require(std::isfinite(o.grad_scale) && o.grad_scale > 0, "grad_scale", o.grad_scale,
          "a finite number > 0");
}

std::string numbered(const char* name, std::size_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

double clip_scale(double norm, double max_norm) { return std::min(1.0, max_norm / (norm + 1e-6)); }

double largest_of(DType dtype) {
  return dtype == DType::f64 ? std::numeric_limits<double>::max()
                             : static_cast<double>(std::numeric_limits<float>::max());
}

std::vector<std::int64_t> sizes_of(const std::vector<Segment>& segments) {
  std::vector<std::int64_t> sizes;
  for (const Segment& segment : segments) sizes.push_back(segment.size);
  return sizes;
}

void check_grads(const std::vector<const void*>& grads, const std::vector<std::int64_t>& sizes,
                 DType dtype) {
  if (dtype != DType::f32 && dtype != DType::f64) {
    fail("grads", name_of(dtype), "float32 or float64");
  }
  if (grads.size() != sizes.size()) {
    fail("grads", std::to_string(grads.size()) + " buffers",
         std::to_string(sizes.size()) + ", one for each size");
  }
  for (std::size_t i = 0; i < grads.size(); ++i) {
    require(sizes[i] >= 0, "grads", sizes[i], "a size >= 0");
    require_buffer(grads[i], sizes[i], dtype, numbered("grads", i).c_str());
  }
}

// The norm, and where the first element is that is not finite.
GradNorm finite_norm(const std::vector<const void*>& grads, DType dtype, ChunkTable& chunks,
                     const Device& device) {
  GradNorm norm = backend_of(device).grad_norm(grads, dtype, chunks);
  if (!std::isfinite(norm.norm)) {
    const double value = norm.norm;
    norm = backend_of(device).first_beyond(grads, dtype, chunks, largest_of(dtype));
    norm.norm = value;
  }
  return norm;
}

// Marks the optimizer as busy; a second thread inside step() would race on the state.
class BusyGuard {
 public:
  explicit BusyGuard(std::atomic_flag& busy) : busy_(busy) {
    if (busy_.test_and_set(std::memory_order_acquire)) {
      throw RuntimeFailure("step: this optimizer is already inside step() on another thread");
    }
  }
  ~BusyGuard() { busy_.clear(std::memory_order_release); }

 private:
  std::atomic_flag& busy_;
};

}  // namespace

ChunkTable::ChunkTable(const std::vector<std::int64_t>& segment_sizes) : sizes(segment_sizes) {
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) {
    first_chunk.push_back(total);
    total += (size + kChunk - 1) / kChunk;
  }
  first_chunk.push_back(total);
  partials.resize(static_cast<std::size_t>(total));
}

struct Optimizer::Plan {
  explicit Plan(const std::vector<std::int64_t>& sizes) : chunks(sizes) {}

  ChunkTable chunks;
  std::vector<Interval> owned;       // parameters and state
  std::vector<void*> checked_grads;  // of the last step: pointers seen before are not checked again
};

Optimizer::Optimizer(const OptimizerOptions& options, std::vector<Segment> segments, Device device)
    : options_(options), segments_(std::move(segments)), device_(device) {
  check_options(options_);
  const bool moments = options_.algorithm != Algorithm::sgd;
  const bool needs_state1 = moments || options_.momentum > 0;
  std::vector<Interval> owned;
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    Segment& segment = segments_[i];
    require(segment.size >= 0, "params", segment.size, "a size >= 0");
    require_buffer(segment.param, segment.size, options_.dtype, numbered("params", i).c_str());
    if (needs_state1) {
      require_buffer(segment.state1, segment.size, options_.dtype, numbered("state1", i).c_str());
    } else {
      segment.state1 = nullptr;
    }
    if (moments) {
      require_buffer(segment.state2, segment.size, options_.dtype, numbered("state2", i).c_str());
    } else {
      segment.state2 = nullptr;
    }
    require(std::isfinite(segment.lr_scale) && segment.lr_scale >= 0, "lr_scale", segment.lr_scale,
            "a finite number >= 0");
    if (segment.weight_decay) {
      require(std::isfinite(*segment.weight_decay) && *segment.weight_decay >= 0, "weight_decay",
              *segment.weight_decay, "a finite number >= 0");
    }
    add_interval(owned, segment.param, segment.size, options_.dtype, numbered("params", i));
    add_interval(owned, segment.state1, segment.size, options_.dtype, numbered("state1", i));
    add_interval(owned, segment.state2, segment.size, options_.dtype, numbered("state2", i));
  }
  require_disjoint(owned);
  plan_ = std::make_unique<Plan>(sizes_of(segments_));
  plan_->owned = std::move(owned);
}

Optimizer::~Optimizer() = default;

void Optimizer::set_step_count(std::int64_t count) {
  require(count >= 0, "step_count", count, "a number >= 0");
  step_count_ = count;
}

StepResult Optimizer::step(const std::vector<void*>& grads, const StepOptions& step_options) {
  const BusyGuard guard(busy_);
  check_step(step_options);
  const std::vector<const void*> inputs(grads.begin(), grads.end());
  if (grads != plan_->checked_grads) {
    check_grads(inputs, plan_->chunks.sizes, options_.dtype);
    std::vector<Interval> all = plan_->owned;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      add_interval(all, grads[i], segments_[i].size, options_.dtype, numbered("grads", i));
    }
    require_disjoint(all);
    plan_->checked_grads = grads;
  }

  StepResult result;
  backend_of(device_).together([&] { result = checked_step(inputs, grads, step_options); });
  return result;
}

StepResult Optimizer::checked_step(const std::vector<const void*>& inputs,
                                   const std::vector<void*>& grads,
                                   const StepOptions& step_options) {
  const Backend& device = backend_of(device_);
  StepResult result;
  result.grad_norm =
      device.grad_norm(inputs, options_.dtype, plan_->chunks).norm / step_options.grad_scale;
  if (step_options.max_norm) {
    result.clip_scale = clip_scale(result.grad_norm, *step_options.max_norm);
  }
  const double multiplier = result.clip_scale / step_options.grad_scale;
  // An element beyond the type's range, or one that scaling would take there.
  const double largest = largest_of(options_.dtype);
  if (!(result.grad_norm * result.clip_scale <= largest)) {
    const GradNorm beyond = device.first_beyond(inputs, options_.dtype, plan_->chunks,
                                                std::min(largest, largest / multiplier));
    if (beyond.nonfinite_segment >= 0) return skip(result, beyond);
  }
  consecutive_skips_ = 0;
  device.update({options_, step_options, segments_, grads, step_count_ + 1, multiplier},
                plan_->chunks);
  ++step_count_;
  return result;
}

StepResult Optimizer::skip(StepResult result, const GradNorm& beyond) {
  result.skipped = true;
  result.clip_scale = 1.0;
  result.nonfinite_segment = beyond.nonfinite_segment;
  result.nonfinite_index = beyond.nonfinite_index;
  ++consecutive_skips_;
  if (options_.max_consecutive_skips > 0 && consecutive_skips_ >= options_.max_consecutive_skips) {
    const std::string& name = segments_[static_cast<std::size_t>(beyond.nonfinite_segment)].name;
    throw RuntimeFailure(
        "grads: not finite in " + std::to_string(consecutive_skips_) + " steps in a row, last in " +
        (name.empty() ? "tensor " + std::to_string(beyond.nonfinite_segment) : name) +
        " at index " + std::to_string(beyond.nonfinite_index));
  }
  return result;
}

std::vector<Segment> segments_of(const Layout& layout, DType dtype, void* params, void* state1,
                                 void* state2) {
  const auto at = [dtype](void* base, std::int64_t offset) -> void* {
    return base == nullptr ? nullptr : static_cast<char*>(base) + offset * size_of(dtype);
  };
  std::vector<Segment> segments;
  for (const LayoutEntry& entry : layout.entries()) {
    segments.push_back({at(params, entry.offset), at(state1, entry.offset),
                        at(state2, entry.offset), entry.size, entry.lr_scale, entry.weight_decay,
                        entry.name});
  }
  return segments;
}

GradNorm grad_norm(const std::vector<const void*>& grads, const std::vector<std::int64_t>& sizes,
                   DType dtype, Device device) {
  check_grads(grads, sizes, dtype);
  ChunkTable chunks(sizes);
  return finite_norm(grads, dtype, chunks, device);
}

GradNorm clip_grad_norm(const std::vector<void*>& grads, const std::vector<std::int64_t>& sizes,
                        DType dtype, double max_norm, Device device) {
  require(std::isfinite(max_norm) && max_norm > 0, "max_norm", max_norm, "a finite number > 0");
  const std::vector<const void*> inputs(grads.begin(), grads.end());
  check_grads(inputs, sizes, dtype);
  std::vector<Interval> all;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    add_interval(all, grads[i], sizes[i], dtype, numbered("grads", i));
  }
  require_disjoint(all);
  ChunkTable chunks(sizes);
  const GradNorm norm = finite_norm(inputs, dtype, chunks, device);
  const double factor = clip_scale(norm.norm, max_norm);
  if (norm.nonfinite_segment < 0 && factor < 1) {
    backend_of(device).scale(grads, dtype, chunks, factor);
  }
  return norm;
}

}  // namespace flatstep
