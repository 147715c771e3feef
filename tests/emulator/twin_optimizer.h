// The same optimizer on the CPU and by kernels.
#pragma once

#include <list>
#include <memory>

#include "core/backend.h"
#include "core/optim.h"
#include "cuda/step_engine.h"
#include "random_arrays.h"

struct Format {
  flatstep::OptimizerOptions options;
  flatstep::DType grads = flatstep::DType::f32;
  bool copy = false;    // bf16 copies of f32 parameters
  bool groups = false;  // lr_scale, weight decay and betas of some tensors' own
};

// The same optimizer on both sides.
class TwinOptimizer {
 public:
  TwinOptimizer(const Format& format, const std::vector<std::int64_t>& sizes)
      : format_(format), sizes_(sizes) {
    for (std::size_t i = 0; i < sizes.size(); ++i) add(i);
    flatstep::Buffers owned;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      flatstep::check_segment(format_.options, i, host_[i], owned);
    }
    cpu_ = flatstep::backend_of({})->step_engine(format_.options, host_);
    cuda_ = flatstep::cuda::step_engine(format_.options, device_, 0, nullptr);
  }

  void new_gradients(float scale = 1.0f) {
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      set_gradient(i, normals(sizes_[i], scale));
    }
  }
  void set_gradient(std::size_t tensor, const std::vector<float>& values) {
    Twin& twin = *grads_[tensor];
    twin.set(bytes_of(values, format_.grads));
  }

  flatstep::StepResult step_on_cpu(const flatstep::StepOptions& step) {
    return cpu_->step({format_.options, step, host_, host_grads_, format_.grads});
  }
  flatstep::StepResult step_on_device(const flatstep::StepOptions& step) {
    return cuda_->step({format_.options, step, device_, device_grads_, format_.grads});
  }
  // Both; whether all is the same after it.
  bool step(const flatstep::StepOptions& step) {
    result = step_on_cpu(step);
    return same_result(result, step_on_device(step)) && same();
  }

  bool same() const {
    bool all = cpu_->step_count() == cuda_->step_count();
    for (const Twin& twin : twins_) all &= twin.same();
    return all;
  }
  static bool same_result(const flatstep::StepResult& a, const flatstep::StepResult& b) {
    return (a.grad_norm == b.grad_norm ||
            (a.grad_norm != a.grad_norm && b.grad_norm != b.grad_norm)) &&
           a.clip_scale == b.clip_scale && a.skipped == b.skipped &&
           a.nonfinite_segment == b.nonfinite_segment && a.nonfinite_index == b.nonfinite_index &&
           a.consecutive_skips == b.consecutive_skips;
  }

  void set_step_count(std::int64_t count) {
    cpu_->set_step_count(count);
    cuda_->set_step_count(count);
  }
  flatstep::OptimizerOptions& options() { return format_.options; }
  const std::vector<std::int64_t>& sizes() const { return sizes_; }
  const std::vector<void*>& host_grads() const { return host_grads_; }
  const std::vector<void*>& device_grads() const { return device_grads_; }
  Bytes param(std::size_t tensor) const { return params_[tensor]->on_host(); }

  flatstep::StepResult result;  // of the CPU

 private:
  void add(std::size_t i) {
    const flatstep::OptimizerOptions& options = format_.options;
    const std::int64_t size = sizes_[i],
                       blocks = (size + flatstep::kStateBlock - 1) / flatstep::kStateBlock;
    flatstep::Segment host, device;
    host.size = device.size = size;
    const auto take = [&](void* flatstep::Segment::* member, const Bytes& bytes) {
      twins_.emplace_back(bytes);
      host.*member = twins_.back().host();
      device.*member = twins_.back().device();
    };
    take(&flatstep::Segment::param, bytes_of(normals(size), options.dtype));
    params_.push_back(&twins_.back());
    const bool low_bit = options.state == flatstep::StateFormat::block8;
    const auto take_state = [&](void* flatstep::Segment::* state,
                                void* flatstep::Segment::* scale) {
      take(state, Bytes(static_cast<std::size_t>(low_bit ? size : 4 * size)));
      if (low_bit) take(scale, Bytes(static_cast<std::size_t>(2 * blocks)));
    };
    const bool sgd = options.algorithm == flatstep::Algorithm::sgd;
    if (!sgd || options.momentum > 0)
      take_state(&flatstep::Segment::state1, &flatstep::Segment::scale1);
    if (!sgd) take_state(&flatstep::Segment::state2, &flatstep::Segment::scale2);
    if (options.amsgrad)
      take(&flatstep::Segment::state3, Bytes(static_cast<std::size_t>(4 * size)));
    if (format_.copy)
      take(&flatstep::Segment::bf16_copy, Bytes(static_cast<std::size_t>(2 * size)));
    if (format_.groups && i % 3 != 0) {
      host.lr_scale = 0.5;
      host.weight_decay = i % 3 == 1 ? std::optional<double>(0.3) : std::nullopt;
      host.betas =
          i % 2 == 1 ? std::optional<flatstep::Betas>(flatstep::Betas{0.6, 0.95}) : std::nullopt;
    }
    device.lr_scale = host.lr_scale;
    device.weight_decay = host.weight_decay;
    device.betas = host.betas;
    twins_.emplace_back(Bytes(static_cast<std::size_t>(size * flatstep::size_of(format_.grads))));
    grads_.push_back(&twins_.back());
    host_grads_.push_back(twins_.back().host());
    device_grads_.push_back(twins_.back().device());
    host_.push_back(host);
    device_.push_back(device);
  }

  Format format_;
  std::vector<std::int64_t> sizes_;
  std::list<Twin> twins_;
  std::vector<Twin*> params_, grads_;
  std::vector<flatstep::Segment> host_, device_;
  std::vector<void*> host_grads_, device_grads_;
  std::unique_ptr<flatstep::StepEngine> cpu_, cuda_;
};
