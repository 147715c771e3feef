#include "gpt/timed_ops.h"

namespace flatstep {

void TimedGptOps::together(const std::function<void()>& body) const { inner_.together(body); }

void TimedGptOps::halves(const std::function<void(int)>& body) const { inner_.halves(body); }

std::int64_t TimedGptOps::scratch_floats(const GptConfig& config, SequenceShape shape) const {
  return inner_.scratch_floats(config, shape);
}

void TimedGptOps::gemm(const Gemm& call, float* scratch) const {
  const Stopwatch watch(&profile_.gemm);
  inner_.gemm(call, scratch);
}

void TimedGptOps::gemm_gelu(const Gemm& call, float* activated, bool slope, float* scratch) const {
  const Stopwatch watch(&profile_.gemm);
  inner_.gemm_gelu(call, activated, slope, scratch);
}

void TimedGptOps::gemm_residual(const Gemm& call, const float* residual, const DropoutSite& site,
                                float* scratch) const {
  const Stopwatch watch(&profile_.gemm);
  inner_.gemm_residual(call, residual, site, scratch);
}

void TimedGptOps::gemm_gelu_backward(const Gemm& call, const float* slope, float* column_sums,
                                     bool accumulate, float* scratch) const {
  const Stopwatch watch(&profile_.gemm);
  inner_.gemm_gelu_backward(call, slope, column_sums, accumulate, scratch);
}

void TimedGptOps::embed(const float* token_table, const float* position_table,
                        const std::int64_t* tokens, SequenceShape shape, std::int64_t width,
                        const DropoutSite& site, float* out) const {
  const Stopwatch watch(&profile_.embedding);
  inner_.embed(token_table, position_table, tokens, shape, width, site, out);
}

void TimedGptOps::embed_backward(const float* grad, const std::int64_t* tokens, SequenceShape shape,
                                 std::int64_t width, float* grad_token_table,
                                 float* grad_position_table, bool accumulate) const {
  const Stopwatch watch(&profile_.embedding);
  inner_.embed_backward(grad, tokens, shape, width, grad_token_table, grad_position_table,
                        accumulate);
}

void TimedGptOps::layer_norm(const float* x, const float* weight, const float* bias,
                             std::int64_t rows, std::int64_t width,
                             const LayerNormResult& result) const {
  const Stopwatch watch(&profile_.layer_norm);
  inner_.layer_norm(x, weight, bias, rows, width, result);
}

void TimedGptOps::layer_norm_backward(const float* grad_out, const float* x, const float* weight,
                                      const LayerNormResult& forward, std::int64_t rows,
                                      std::int64_t width, bool add_to_x, float* grad_x,
                                      float* grad_weight, float* grad_bias,
                                      const BranchGradient& branch, bool accumulate,
                                      float* scratch) const {
  const Stopwatch watch(&profile_.layer_norm);
  inner_.layer_norm_backward(grad_out, x, weight, forward, rows, width, add_to_x, grad_x,
                             grad_weight, grad_bias, branch, accumulate, scratch);
}

void TimedGptOps::attention(const float* qkv, SequenceShape shape, std::int64_t heads,
                            std::int64_t width, const DropoutSite& site, float* out, float* log_sum,
                            float* scratch) const {
  const Stopwatch watch(&profile_.attention);
  inner_.attention(qkv, shape, heads, width, site, out, log_sum, scratch);
}

void TimedGptOps::attention_backward(const float* qkv, const float* out, const float* log_sum,
                                     const float* grad_out, SequenceShape shape, std::int64_t heads,
                                     std::int64_t width, const DropoutSite& site, float* grad_qkv,
                                     float* scratch) const {
  const Stopwatch watch(&profile_.attention);
  inner_.attention_backward(qkv, out, log_sum, grad_out, shape, heads, width, site, grad_qkv,
                            scratch);
}

void TimedGptOps::column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                             bool accumulate, float* scratch) const {
  const Stopwatch watch(&profile_.sums);
  inner_.column_sum(x, rows, columns, out, accumulate, scratch);
}

void TimedGptOps::finish(const std::vector<FinishedGradient>& gradients) const {
  const Stopwatch watch(&profile_.sums);
  inner_.finish(gradients);
}

}  // namespace flatstep
