#include "gpt/timed_ops.h"

namespace flatstep {

void TimedGptOps::together(const std::function<void()>& body) const { inner_.together(body); }

std::int64_t TimedGptOps::scratch_floats(SequenceShape shape, std::int64_t width,
                                         std::int64_t heads, std::int64_t widest) const {
  return inner_.scratch_floats(shape, width, heads, widest);
}

void TimedGptOps::gemm(const Gemm& call, float* scratch) const {
  const Stopwatch watch(&profile_.gemm);
  inner_.gemm(call, scratch);
}

void TimedGptOps::embed(const float* token_table, const float* position_table,
                        const std::int64_t* tokens, SequenceShape shape, std::int64_t width,
                        float* out) const {
  const Stopwatch watch(&profile_.embedding);
  inner_.embed(token_table, position_table, tokens, shape, width, out);
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
                                      float* grad_weight, float* grad_bias, bool accumulate,
                                      float* scratch) const {
  const Stopwatch watch(&profile_.layer_norm);
  inner_.layer_norm_backward(grad_out, x, weight, forward, rows, width, add_to_x, grad_x,
                             grad_weight, grad_bias, accumulate, scratch);
}

void TimedGptOps::gelu(const float* x, float* out, std::int64_t size) const {
  const Stopwatch watch(&profile_.gelu);
  inner_.gelu(x, out, size);
}

void TimedGptOps::gelu_backward(const float* x, float* grad, std::int64_t size) const {
  const Stopwatch watch(&profile_.gelu);
  inner_.gelu_backward(x, grad, size);
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

void TimedGptOps::add_dropout(const float* x, const float* residual, std::int64_t size,
                              const DropoutSite& site, float* out) const {
  const Stopwatch watch(&profile_.residual);
  inner_.add_dropout(x, residual, size, site, out);
}

void TimedGptOps::column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                             bool accumulate, float* scratch) const {
  const Stopwatch watch(&profile_.sums);
  inner_.column_sum(x, rows, columns, out, accumulate, scratch);
}

void TimedGptOps::sum_squares(const float* x, std::int64_t size, double* sums) const {
  const Stopwatch watch(&profile_.sums);
  inner_.sum_squares(x, size, sums);
}

}  // namespace flatstep
