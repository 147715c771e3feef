// The Transformer's operations on the CPU: fixed tasks over the kernels of the chosen ISA.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/dropout_task.h"
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

constexpr std::int64_t kRowsPerPartial = 64;  // rows whose parameter gradients are summed in f32
constexpr std::int64_t kOneTask = 1 << 15;    // additions that are quicker than another thread
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
  const std::int64_t stretch = count * columns <= kOneTask ? columns : 256;
  parallel_ranges(columns, stretch, [&](std::int64_t begin, std::int64_t end) {
    gpt_kernels().sum_partials(partials + begin, count, stride, end - begin, out + begin,
                               accumulate);
  });
}

DropoutTask task_of(const DropoutSite& site) { return dropout_task(site.p, site.key); }

ElementDropout elements_of(const DropoutSite& site, std::int64_t width) {
  return {site.p > 0, task_of(site), site.first_row * width};
}

// visit(offset in C) for each row of a region of a contiguous C. Rows of the region lie far apart
// in `other`, a matrix like C that is not in the cache: they are asked for a few rows ahead.
template <class Visit>
void for_each_row(const GemmRegion& region, std::int64_t columns, const float* other, Visit visit) {
  constexpr std::int64_t kAhead = 4, kLine = 16;
  const std::int64_t end = region.row + region.rows;
  const auto fetch = [&](std::int64_t row) {
    const float* from = other + row * columns + region.column;
    for (std::int64_t j = 0; j < region.columns; j += kLine) __builtin_prefetch(from + j);
  };
  for (std::int64_t r = region.row; r < std::min(end, region.row + kAhead); ++r) fetch(r);
  for (std::int64_t r = region.row; r < end; ++r) {
    if (r + kAhead < end) fetch(r + kAhead);
    visit(r * columns + region.column);
  }
}

class CpuGptOps final : public GptOps {
 public:
  void together(const std::function<void()>& body) const override { with_team(body); }

  void halves(const std::function<void(int)>& body) const override { run_halves(body); }

  std::int64_t scratch_floats(const GptConfig& config, SequenceShape shape) const override {
    const std::int64_t width = config.n_embd, widest = 4 * width;
    const std::int64_t deepest = std::max(shape.rows(), widest);
    const std::int64_t gemm = gemm_floats(deepest, std::max(widest, config.vocab_size), deepest);
    const std::int64_t attention =
        worker_count() * attention_floats(shape.length, width / config.n_head);
    const std::int64_t partials = partial_count(shape.rows()) * widest;
    // A product with sums of its columns has them behind its panels.
    const std::int64_t rows = gemm_region_rows(shape.rows(), widest);
    const std::int64_t behind = (shape.rows() + rows - 1) / rows * widest;
    return std::max({gemm + behind, attention, partials});
  }

  void gemm(const Gemm& call, float* scratch) const override { cpu::gemm(call, scratch); }

  void gemm_gelu(const Gemm& call, float* activated, bool slope, float* scratch) const override {
    auto* hidden = static_cast<float*>(call.c);
    gemm_then(call, scratch, [&](const GemmRegion& region) {
      for_each_row(region, call.n, activated, [&](std::int64_t at) {
        if (slope) {
          gpt_kernels().gelu_and_slope(hidden + at, activated + at, region.columns);
        } else {
          gpt_kernels().gelu(hidden + at, activated + at, region.columns);
        }
      });
    });
  }

  void gemm_residual(const Gemm& call, const float* residual, const DropoutSite& site,
                     float* scratch) const override {
    auto* out = static_cast<float*>(call.c);
    const ElementDropout dropout = elements_of(site, call.n);
    gemm_then(call, scratch, [&](const GemmRegion& region) {
      for_each_row(region, call.n, residual, [&](std::int64_t at) {
        gpt_kernels().add_dropout(dropout, out + at, residual + at, at, region.columns, out + at);
      });
    });
  }

  void gemm_gelu_backward(const Gemm& call, const float* slope, float* column_sums, bool accumulate,
                          float* scratch) const override {
    auto* grad = static_cast<float*>(call.c);
    const std::int64_t stretch = gemm_region_rows(call.m, call.n);
    float* partials = scratch + gemm_floats(call.m, call.n, call.k);
    gemm_then(call, scratch, [&](const GemmRegion& region) {
      for_each_row(region, call.n, slope, [&](std::int64_t at) {
        gpt_kernels().multiply(slope + at, region.columns, grad + at);
      });
      kernels().column_sum(grad + region.row * call.n + region.column, call.n, region.rows,
                           region.columns, partials + region.row / stretch * call.n + region.column,
                           false);
    });
    reduce_partials(partials, (call.m + stretch - 1) / stretch, call.n, call.n, column_sums,
                    accumulate);
  }

  void embed(const float* token_table, const float* position_table, const std::int64_t* tokens,
             SequenceShape shape, std::int64_t width, const DropoutSite& site,
             float* out) const override {
    const ElementDropout dropout = elements_of(site, width);
    parallel_ranges(shape.rows(), 32, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        float* to = out + r * width;
        std::copy_n(token_table + tokens[r] * width, width, to);
        gpt_kernels().add(position_table + r % shape.length * width, width, to);
        if (dropout.drop) gpt_kernels().add_dropout(dropout, to, nullptr, r * width, width, to);
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
        gpt_kernels().add(grad + r * width + begin, end - begin,
                          grad_token_table + tokens[r] * width + begin);
      }
    });
    parallel_for(shape.length, [&](std::int64_t t, int) {
      float* to = grad_position_table + t * width;
      if (!accumulate) std::fill(to, to + width, 0.0f);
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        gpt_kernels().add(grad + (b * shape.length + t) * width, width, to);
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
                           const BranchGradient& branch, bool accumulate,
                           float* scratch) const override {
    const LayerNormBackward task{grad_out,
                                 x,
                                 weight,
                                 forward.mean,
                                 forward.rstd,
                                 width,
                                 add_to_x,
                                 grad_x,
                                 elements_of(branch.site, width),
                                 branch.out};
    parallel_ranges(rows, kRowsPerPartial, [&](std::int64_t begin, std::int64_t end) {
      gpt_kernels().layer_norm_backward(task, begin, end,
                                        scratch + begin / kRowsPerPartial * 3 * width);
    });
    float* sums[] = {grad_weight, grad_bias, branch.bias};
    for (int i = 0; i < 3 && sums[i] != nullptr; ++i) {
      reduce_partials(scratch + i * width, partial_count(rows), 3 * width, width, sums[i],
                      accumulate);
    }
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

  void column_sum(const float* x, std::int64_t rows, std::int64_t columns, float* out,
                  bool accumulate, float* scratch) const override {
    parallel_ranges(rows, kRowsPerPartial, [&](std::int64_t begin, std::int64_t end) {
      kernels().column_sum(x + begin * columns, columns, end - begin, columns,
                           scratch + begin / kRowsPerPartial * columns, false);
    });
    reduce_partials(scratch, partial_count(rows), columns, columns, out, accumulate);
  }

  void finish(const std::vector<FinishedGradient>& gradients) const override {
    constexpr std::int64_t kChunk = GradPartials::kChunk;
    const auto chunks = [](const FinishedGradient& g) { return (g.size + kChunk - 1) / kChunk; };
    std::int64_t all = 0;
    for (const FinishedGradient& gradient : gradients) all += chunks(gradient);
    parallel_for(all, [&](std::int64_t task, int) {
      std::int64_t chunk = all - 1 - task;  // like the optimizer, see cpu/chunks.h
      const FinishedGradient* gradient = gradients.data();
      for (; chunk >= chunks(*gradient); ++gradient) chunk -= chunks(*gradient);
      const std::int64_t begin = chunk * kChunk, size = std::min(kChunk, gradient->size - begin);
      float* x = gradient->x + begin;
      const double squares =
          gradient->addend == nullptr
              ? kernels().sum_of_squares_f32(x, size)
              : kernels().accumulate_f32(x, gradient->addend + begin, size, 1.0f, false);
      if (gradient->sums != nullptr) gradient->sums[chunk] = squares;
    });
  }

 private:
  // Both rounded to cache lines, so that workers do not share one.
  static std::int64_t gemm_floats(std::int64_t m, std::int64_t n, std::int64_t k) {
    return (static_cast<std::int64_t>(gemm_workspace_floats(m, n, k)) + 15) / 16 * 16;
  }

  static std::int64_t attention_floats(std::int64_t length, std::int64_t head_width) {
    return (gpt_kernels().attention_scratch_floats(length, head_width) + 31) / 16 * 16;
  }

  static Attention attention_task(const float* qkv, SequenceShape shape, std::int64_t heads,
                                  std::int64_t width, const DropoutSite& site, float* out,
                                  float* log_sum) {
    return {shape.batch, shape.length, heads,      width / heads, qkv,
            out,         log_sum,      site.p > 0, task_of(site), site.first_row / shape.length};
  }
};

}  // namespace

const GptOps& gpt_ops() {
  static const CpuGptOps instance;
  return instance;
}

}  // namespace flatstep::cpu
