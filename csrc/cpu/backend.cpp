// The CPU backend: splits each call into fixed tasks for the kernels of the chosen instruction set.
#include "core/backend.h"

#include "core/tasks.h"
#include "cpu/cross_entropy.h"
#include "cpu/dropout.h"
#include "cpu/isa.h"
#include "cpu/optimizer.h"
#include "cpu/parallel.h"

namespace flatstep::cpu {
namespace {

class CpuBackend final : public Backend {
 public:
  void together(const std::function<void()>& body) const override { with_team(body); }

  CrossEntropyResult cross_entropy(const ConstMatrix& logits, const IndexArray& targets,
                                   const CrossEntropyOptions& options,
                                   const CrossEntropyOutputs& outputs,
                                   void* workspace) const override {
    return cpu::cross_entropy(logits, targets, options, outputs, workspace);
  }

  GradNorm grad_norm(const std::vector<const void*>& grads, DType dtype,
                     ChunkTable& chunks) const override {
    return cpu::grad_norm(grads, dtype, chunks);
  }

  GradNorm first_beyond(const std::vector<const void*>& grads, DType dtype,
                        const ChunkTable& chunks, double limit) const override {
    return cpu::first_beyond(grads, dtype, chunks, limit);
  }

  void scale(const std::vector<void*>& grads, DType dtype, const ChunkTable& chunks,
             double factor) const override {
    cpu::scale(grads, dtype, chunks, factor);
  }

  void update(const UpdateTask& task, const ChunkTable& chunks) const override {
    cpu::update(task, chunks);
  }

  void dropout(const float* x, float* out, std::int64_t size, double p, const DropoutKey& key,
               std::int64_t first) const override {
    const DropoutTask task = dropout_task(p, key);
    for_each_multiplier(task, first, size, [=](std::int64_t i, float multiplier) {
      out[i] = multiplier == 0 ? 0.0f : x[i] * multiplier;
    });
  }

  void dropout_mask(std::uint8_t* out, std::int64_t size, double p, const DropoutKey& key,
                    std::int64_t first) const override {
    const DropoutTask task = dropout_task(p, key);
    for_each_multiplier(task, first, size, [=](std::int64_t i, float multiplier) {
      out[i] = multiplier == 0 ? 0 : 1;
    });
  }
};

}  // namespace

const Backend& backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace flatstep::cpu
