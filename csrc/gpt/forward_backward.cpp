// The public functions of a pass: checks, memory, and the pipeline over a batch or its halves.
#include <algorithm>
#include <cmath>
#include <optional>

#include "core/checks.h"
#include "flatstep/gpt.h"
#include "flatstep/loss.h"
#include "gpt/batch.h"
#include "gpt/pipeline.h"
#include "gpt/timed_ops.h"
#include "gpt/workspace.h"

namespace flatstep {
namespace {

CrossEntropyOptions loss_options(std::int64_t valid, double divisor, double label_smoothing,
                                 std::int64_t ignore_index) {
  CrossEntropyOptions options;
  options.label_smoothing = label_smoothing;
  options.ignore_index = ignore_index;
  options.divisor = divisor > 0 ? divisor : static_cast<double>(std::max<std::int64_t>(1, valid));
  return options;
}

Pass training_pass(bool recompute) { return recompute ? Pass::recomputing : Pass::training; }

// A call whose input has been checked and copied.
struct Call {
  const GptConfig& config;
  const Layout& layout;
  const float* params;
  Pass pass;
  DropoutKey key;
  PassMemory memory;

  Pipeline part(int index, const GptOps& ops) const {
    const std::int64_t first_row = index * memory.shape.rows();
    return {ops,
            config,
            layout,
            params,
            memory.shape,
            memory.tokens + first_row,
            memory.targets + first_row,
            memory.parts[static_cast<std::size_t>(index)],
            pass == Pass::inference ? 0.0 : config.dropout,
            key,
            first_row,
            pass == Pass::recomputing};
  }
};

// Checks the batch and the workspace, copies the tokens and calls body(call).
template <class Body>
void run(const GptConfig& config, const Layout& layout, const float* params,
         const TokenBatch& tokens, Pass pass, void* workspace, std::size_t workspace_bytes,
         const DropoutKey& key, const Body& body) {
  check_shape(config, tokens.batch, tokens.length);
  check_buffers(layout, params, nullptr);
  const SequenceShape batch{tokens.batch, tokens.length};
  // Inside, the number of threads is fixed, and with it the size of the workspace.
  cpu::gpt_ops().together([&] {
    const Call call{config, layout, params,
                    pass,   key,    PassMemory(config, layout.size(), batch, pass, workspace)};
    require_workspace(workspace, workspace_bytes, call.memory.bytes);
    copy_tokens(tokens, config.vocab_size, call.memory.tokens);
    body(call);
  });
}

// The operations of the CPU, timed where there is a profile.
class Operations {
 public:
  explicit Operations(GptProfile* profile) {
    if (profile != nullptr) timed_.emplace(cpu::gpt_ops(), *profile);
  }
  const GptOps& operator*() const { return timed_ ? *timed_ : cpu::gpt_ops(); }

 private:
  std::optional<TimedGptOps> timed_;
};

// Adds the parts' times, of which some ran side by side, so that they fill `seconds` together.
void add_profiles(const GptProfile (&halves)[2], double seconds, GptProfile& profile) {
  const double share = seconds / (halves[0].pass + halves[1].pass);
  for (double GptProfile::* const time :
       {&GptProfile::gemm, &GptProfile::attention, &GptProfile::head, &GptProfile::layer_norm,
        &GptProfile::embedding, &GptProfile::sums}) {
    profile.*time += share * (halves[0].*time + halves[1].*time);
  }
}

// The pass over the halves of the batch, and the sum of their gradients.
double train_halves(const Call& call, const CrossEntropyOptions& criterion, float* grads,
                    const TrainOptions& options) {
  GptProfile* const profile = options.profile;
  const Operations ops(profile);
  double losses[2], seconds = 0;
  GptProfile profiles[2];
  {
    const Stopwatch watch(profile == nullptr ? nullptr : &seconds);
    (*ops).halves([&](int half) {
      GptProfile* const own = profile == nullptr ? nullptr : &profiles[half];
      const Stopwatch own_watch(own == nullptr ? nullptr : &own->pass);
      const Operations own_ops(own);
      Pipeline pipeline = call.part(half, *own_ops);
      pipeline.grads = half == 0 ? grads : call.memory.second_grads;
      pipeline.profile = own;
      losses[half] = pipeline.forward_backward(criterion, half == 0 && options.accumulate);
    });
  }
  if (profile != nullptr) add_profiles(profiles, seconds, *profile);
  Pipeline whole = call.part(0, *ops);
  whole.grads = grads;
  whole.partials = options.partials;
  whole.finish_all(call.memory.second_grads);
  return losses[0] + losses[1];
}

double train_whole(const Call& call, const CrossEntropyOptions& criterion, float* grads,
                   const TrainOptions& options) {
  const Operations ops(options.profile);
  Pipeline pipeline = call.part(0, *ops);
  pipeline.grads = grads;
  pipeline.partials = options.partials;
  pipeline.profile = options.profile;
  return pipeline.forward_backward(criterion, options.accumulate);
}

}  // namespace

std::size_t Gpt::training_workspace_bytes(std::int64_t batch, std::int64_t length,
                                          bool recompute) const {
  return memory(batch, length, recompute).workspace;
}

GptMemory Gpt::memory(std::int64_t batch, std::int64_t length, bool recompute) const {
  check_shape(config_, batch, length);
  const PassMemory space(config_, layout_.size(), {batch, length}, training_pass(recompute),
                         nullptr);
  GptMemory memory;
  memory.params = memory.grads = static_cast<std::size_t>(layout_.size()) * sizeof(float);
  memory.workspace = space.bytes;
  memory.tokens = space.token_bytes;
  memory.activations = space.activation_bytes;
  memory.buffers = space.bytes - space.token_bytes - space.activation_bytes;
  return memory;
}

std::size_t Gpt::inference_workspace_bytes(std::int64_t batch, std::int64_t length) const {
  check_shape(config_, batch, length);
  return PassMemory(config_, layout_.size(), {batch, length}, Pass::inference, nullptr).bytes;
}

double Gpt::forward_backward(const float* params, float* grads, const TokenBatch& tokens,
                             const TokenBatch& targets, const TrainOptions& options,
                             void* workspace, std::size_t workspace_bytes) const {
  check_buffers(layout_, params, grads);
  require(options.label_smoothing >= 0 && options.label_smoothing < 1, "label_smoothing",
          options.label_smoothing, "a number in [0, 1)");
  require(std::isfinite(options.loss_divisor) && options.loss_divisor >= 0, "loss_divisor",
          options.loss_divisor, "a finite number >= 0");
  require(options.step >= 0 && options.step < (std::int64_t{1} << 48), "step", options.step,
          "a number in [0, 2^48)");
  const Stopwatch watch(options.profile == nullptr ? nullptr : &options.profile->pass);
  double loss = 0;
  run(config_, layout_, params, tokens, training_pass(options.recompute), workspace,
      workspace_bytes, {options.seed, options.step, 0}, [&](const Call& call) {
        const std::int64_t valid = copy_targets(targets, tokens, config_.vocab_size,
                                                options.ignore_index, call.memory.targets);
        if (options.partials != nullptr && !options.partials->are_of(layout_)) {
          *options.partials = GradPartials(layout_);
        }
        const CrossEntropyOptions criterion = loss_options(
            valid, options.loss_divisor, options.label_smoothing, options.ignore_index);
        loss = call.memory.parts.size() == 2 ? train_halves(call, criterion, grads, options)
                                             : train_whole(call, criterion, grads, options);
      });
  return loss;
}

double Gpt::loss(const float* params, const TokenBatch& tokens, const TokenBatch& targets,
                 void* workspace, std::size_t workspace_bytes, std::int64_t ignore_index) const {
  double loss = 0;
  run(config_, layout_, params, tokens, Pass::inference, workspace, workspace_bytes, {},
      [&](const Call& call) {
        const std::int64_t valid =
            copy_targets(targets, tokens, config_.vocab_size, ignore_index, call.memory.targets);
        const Pipeline pipeline = call.part(0, cpu::gpt_ops());
        pipeline.forward();
        loss = pipeline.head_loss(loss_options(valid, 0, 0, ignore_index), nullptr, nullptr, false);
      });
  return loss;
}

void Gpt::logits(const float* params, const TokenBatch& tokens, float* logits, void* workspace,
                 std::size_t workspace_bytes) const {
  run(config_, layout_, params, tokens, Pass::inference, workspace, workspace_bytes, {},
      [&](const Call& call) {
        require_buffer(logits, tokens.batch * tokens.length * config_.vocab_size, DType::f32,
                       "logits");
        const Pipeline pipeline = call.part(0, cpu::gpt_ops());
        pipeline.forward();
        pipeline.head(logits);
      });
}

}  // namespace flatstep
