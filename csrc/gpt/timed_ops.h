// Where the time of a pass goes: the operations of another GptOps between two looks at the clock.
#pragma once

#include <chrono>

#include "flatstep/gpt.h"
#include "gpt/ops.h"

namespace flatstep {

// Adds the seconds of its life to `total`; does nothing where that is null.
class Stopwatch {
 public:
  explicit Stopwatch(double* total) : total_(total) {
    if (total_ != nullptr) began_ = Clock::now();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    if (total_ != nullptr) *total_ += std::chrono::duration<double>(Clock::now() - began_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  double* total_;
  Clock::time_point began_;
};

// The operations of `inner`, whose time is added to the parts of `profile`. Both must outlive it.
class TimedGptOps final : public GptOps {
 public:
  TimedGptOps(const GptOps& inner, GptProfile& profile) : inner_(inner), profile_(profile) {}

  void together(const std::function<void()>& body) const override;
  void halves(const std::function<void(int)>& body) const override;
  std::int64_t scratch_floats(const GptConfig& config, SequenceShape shape) const override;
  void gemm(const Gemm& call, float* scratch) const override;
  void gemm_gelu(const Gemm& call, float* activated, bool slope, float* scratch) const override;
  void gemm_residual(const Gemm& call, const float* residual, const DropoutSite& site,
                     float* scratch) const override;
  void gemm_gelu_backward(const Gemm& call, const float* slope, float* column_sums, bool accumulate,
                          float* scratch) const override;
  void embed(const float* token_table, const float* position_table, const std::int64_t* tokens,
             SequenceShape shape, std::int64_t width, const DropoutSite& site,
             float* out) const override;
  void embed_backward(const float* grad, const std::int64_t* tokens, SequenceShape shape,
                      std::int64_t width, float* grad_token_table, float* grad_position_table,
                      bool accumulate) const override;
  void layer_norm(const float* x, const float* weight, const float* bias, std::int64_t rows,
                  std::int64_t width, const LayerNormResult& result) const override;
  void layer_norm_backward(const float* grad_out, const float* x, const float* weight,
                           const LayerNormResult& forward, std::int64_t rows, std::int64_t width,
                           bool add_to_x, float* grad_x, float* grad_weight, float* grad_bias,
                           const BranchGradient& branch, bool accumulate,
                           float* scratch) const override;
  void attention(const float* qkv, SequenceShape shape, std::int64_t heads, std::int64_t width,
                 const DropoutSite& site, float* out, float* log_sum,
                 float* scratch) const override;
  void attention_backward(const float* qkv, const float* out, const float* log_sum,
                          const float* grad_out, SequenceShape shape, std::int64_t heads,
                          std::int64_t width, const DropoutSite& site, float* grad_qkv,
                          float* scratch) const override;
  void column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                  bool accumulate, float* scratch) const override;
  void finish(const std::vector<FinishedGradient>& gradients) const override;

 private:
  const GptOps& inner_;
  GptProfile& profile_;
};

}  // namespace flatstep
