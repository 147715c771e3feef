// The Transformer's operations on the CPU: fixed tasks over the kernels of the chosen ISA.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/isa_list.h"
#include "cpu/parallel.h"
#include "flatstep/grad.h"
#include "gpt/cpu_isa.h"
#include "gpt/ops.h"

#define FLATSTEP_DECLARE(name) \
  namespace name {             \
  void fill(GptKernelTable&);  \
  }
namespace flatstep::cpu {
FLATSTEP_ISA_LIST(FLATSTEP_DECLARE)

namespace {

constexpr std::int64_t kStretch = 16384;      // elements of an element-wise task
constexpr std::int64_t kRowsPerPartial = 64;  // rows whose parameter gradients are summed in f32
constexpr std::int64_t kEmbedColumns = 32;    // columns of the token table that one task owns

}  // namespace

// Both libraries are built with one list.
const GptKernelTable& gpt_kernels() {
  static const GptKernelTable table = [] {
    const char* isa = kernels().isa;
    GptKernelTable chosen{};
#define FLATSTEP_FILL(name) \
  if (std::strcmp(isa, #name) == 0) name::fill(chosen);
    FLATSTEP_ISA_LIST(FLATSTEP_FILL)
    return chosen;
  }();
  return table;
}

namespace {

std::int64_t partial_count(std::int64_t rows) {
  return (rows + kRowsPerPartial - 1) / kRowsPerPartial;
}

// out[j] = sum over the partials in order, in f64; partial c is at partials + c * stride.
void reduce_partials(const float* partials, std::int64_t count, std::int64_t stride,
                     std::int64_t columns, float* out, bool accumulate) {
  parallel_ranges(columns, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t j = begin; j < end; ++j) {
      double sum = accumulate ? out[j] : 0.0;
      for (std::int64_t c = 0; c < count; ++c) sum += partials[c * stride + j];
      out[j] = static_cast<float>(sum);
    }
  });
}

DropoutTask task_of(const DropoutSite& site) { return dropout_task(site.p, site.key); }

class CpuGptOps final : public GptOps {
 public:
  void together(const std::function<void()>& body) const override { with_team(body); }

  std::int64_t scratch_floats(SequenceShape shape, std::int64_t width, std::int64_t heads,
                              std::int64_t widest) const override {
    const std::int64_t gemm = static_cast<std::int64_t>(gemm_workspace_floats());
    const std::int64_t attention = worker_count() * attention_floats(shape.length, width / heads);
    const std::int64_t partials = partial_count(shape.rows()) * std::max(2 * width, widest);
    return std::max({gemm, attention, partials});
  }

  void gemm(const Gemm& call, float* scratch) const override { cpu::gemm(call, scratch); }

  void embed(const float* token_table, const float* position_table, const std::int64_t* tokens,
             SequenceShape shape, std::int64_t width, float* out) const override {
    parallel_ranges(shape.rows(), 32, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const float* token = token_table + tokens[r] * width;
        const float* position = position_table + r % shape.length * width;
        for (std::int64_t j = 0; j < width; ++j) out[r * width + j] = token[j] + position[j];
      }
    });
  }

  void embed_backward(const float* grad, const std::int64_t* tokens, SequenceShape shape,
                      std::int64_t width, float* grad_token_table, float* grad_position_table,
                      bool accumulate) const override {
    // A task owns columns, not rows: no two tasks write the same element, and each element is
    // summed in the order of the tokens.
    parallel_ranges(width, kEmbedColumns, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = 0; r < shape.rows(); ++r) {
        float* to = grad_token_table + tokens[r] * width;
        for (std::int64_t j = begin; j < end; ++j) to[j] += grad[r * width + j];
      }
    });
    parallel_for(shape.length, [&](std::int64_t t, int) {
      float* to = grad_position_table + t * width;
      if (!accumulate) std::fill(to, to + width, 0.0f);
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        const float* from = grad + (b * shape.length + t) * width;
        for (std::int64_t j = 0; j < width; ++j) to[j] += from[j];
      }
    });
  }

  void layer_norm(const float* x, const float* weight, const float* bias, std::int64_t rows,
                  std::int64_t width, const LayerNormResult& result) const override {
    parallel_ranges(rows, 32, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().layer_norm(x, weight, bias, width, begin, end, result.out, result.mean,
                               result.rstd);
    });
  }

  void layer_norm_backward(const float* grad_out, const float* x, const float* weight,
                           const LayerNormResult& forward, std::int64_t rows, std::int64_t width,
                           bool add_to_x, float* grad_x, float* grad_weight, float* grad_bias,
                           bool accumulate, float* scratch) const override {
    parallel_ranges(rows, kRowsPerPartial, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().layer_norm_backward(grad_out, x, weight, forward.mean, forward.rstd, width,
                                        begin, end, add_to_x, grad_x,
                                        scratch + begin / kRowsPerPartial * 2 * width);
    });
    const std::int64_t count = partial_count(rows);
    reduce_partials(scratch, count, 2 * width, width, grad_weight, accumulate);
    reduce_partials(scratch + width, count, 2 * width, width, grad_bias, accumulate);
  }

  void gelu(const float* x, float* out, std::int64_t size) const override {
    parallel_ranges(size, kStretch, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().gelu(x + begin, out + begin, end - begin);
    });
  }

  void gelu_backward(const float* x, float* grad, std::int64_t size) const override {
    parallel_ranges(size, kStretch, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().gelu_backward(x + begin, grad + begin, end - begin);
    });
  }

  void attention(const float* qkv, SequenceShape shape, std::int64_t heads, std::int64_t width,
                 const DropoutSite& site, float* out, float* log_sum,
                 float* scratch) const override {
    const Attention task = attention_task(qkv, shape, heads, width, site, out, log_sum);
    const std::int64_t floats = attention_floats(shape.length, width / heads);
    parallel_for(shape.batch * heads, [&](std::int64_t i, int worker) {
      gpt_kernels().attention(task, i / heads, i % heads, scratch + worker * floats);
    });
  }

  void attention_backward(const float* qkv, const float* out, const float* log_sum,
                          const float* grad_out, SequenceShape shape, std::int64_t heads,
                          std::int64_t width, const DropoutSite& site, float* grad_qkv,
                          float* scratch) const override {
    // The forward results are only read.
    const AttentionBackward task{
        attention_task(qkv, shape, heads, width, site, const_cast<float*>(out),
                       const_cast<float*>(log_sum)),
        grad_out, grad_qkv};
    const std::int64_t floats = attention_floats(shape.length, width / heads);
    parallel_for(shape.batch * heads, [&](std::int64_t i, int worker) {
      gpt_kernels().attention_backward(task, i / heads, i % heads, scratch + worker * floats);
    });
  }

  void add_dropout(const float* x, const float* residual, std::int64_t size,
                   const DropoutSite& site, float* out) const override {
    if (site.p == 0) {
      parallel_ranges(size, kStretch, [&](std::int64_t begin, std::int64_t end) {
        if (residual == nullptr) {
          if (out != x)
            std::memcpy(out + begin, x + begin,
                        static_cast<std::size_t>(end - begin) * sizeof(float));
        } else {
          for (std::int64_t i = begin; i < end; ++i) out[i] = residual[i] + x[i];
        }
      });
    } else if (residual == nullptr) {
      for_each_multiplier(task_of(site), 0, size,
                          [=](std::int64_t i, float multiplier) { out[i] = x[i] * multiplier; });
    } else {
      for_each_multiplier(task_of(site), 0, size, [=](std::int64_t i, float multiplier) {
        out[i] = residual[i] + x[i] * multiplier;
      });
    }
  }

  void column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                  bool accumulate, float* scratch) const override {
    parallel_ranges(rows, kRowsPerPartial, [&](std::int64_t begin, std::int64_t end) {
      kernels().column_sum(x + begin * columns, columns, end - begin, columns,
                           scratch + begin / kRowsPerPartial * columns, false);
    });
    reduce_partials(scratch, partial_count(rows), columns, columns, out, accumulate);
  }

  void sum_squares(const float* x, std::int64_t size, double* sums) const override {
    constexpr std::int64_t kChunk = GradPartials::kChunk;
    parallel_for((size + kChunk - 1) / kChunk, [=](std::int64_t chunk, int) {
      const std::int64_t begin = chunk * kChunk;
      sums[chunk] = kernels().sum_of_squares_f32(x + begin, std::min(kChunk, size - begin));
    });
  }

 private:
  // Rounded to cache lines, so that workers do not share one.
  static std::int64_t attention_floats(std::int64_t length, std::int64_t head_width) {
    return (gpt_kernels().attention_scratch_floats(length, head_width) + 31) / 16 * 16;
  }

  static Attention attention_task(const float* qkv, SequenceShape shape, std::int64_t heads,
                                  std::int64_t width, const DropoutSite& site, float* out,
                                  float* log_sum) {
    return {shape.batch, shape.length, heads,      width / heads, qkv,
            out,         log_sum,      site.p > 0, task_of(site)};
  }
};

}  // namespace

const GptOps& gpt_ops() {
  static const CpuGptOps instance;
  return instance;
}

}  // namespace flatstep::cpu
