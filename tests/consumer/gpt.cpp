// Overfits one batch with flatstep::gpt and prints the first and the last loss; the model then has
// to go on from the batch's first token as the batch does.
#include <flatstep/flatstep.h>
#include <flatstep/gpt.h>

#include <cstdio>
#include <vector>

int main() {
  const flatstep::Gpt gpt({16, 8, 2, 2, 16, 0.1});
  const std::int64_t size = gpt.layout().size();
  std::vector<float> params(size), grads(size), m(size), v(size);
  gpt.initialize(params.data(), 7);
  std::vector<std::int32_t> tokens(2 * 8), targets(2 * 8);
  for (int i = 0; i < 16; ++i) tokens[i] = i, targets[i] = (i * 5 + 3) % 16;
  const std::size_t bytes = gpt.training_workspace_bytes(2, 8);
  std::vector<std::max_align_t> workspace((bytes + 63) / sizeof(std::max_align_t) + 1);
  flatstep::OptimizerOptions options;
  options.weight_decay = 0.01;
  flatstep::Optimizer adamw(options, flatstep::segments_of(gpt.layout(), flatstep::DType::f32,
                                                           params.data(), m.data(), v.data()));
  double first = 0, last = 0;
  for (int step = 0; step < 150; ++step) {
    flatstep::TrainOptions train;
    train.step = step;
    last = gpt.forward_backward(
        params.data(), grads.data(), {tokens.data(), flatstep::DType::i32, 2, 8},
        {targets.data(), flatstep::DType::i32, 2, 8}, train, workspace.data(), bytes);
    if (step == 0) first = last;
    std::vector<void*> buffers;
    for (const auto& entry : gpt.layout().entries()) buffers.push_back(grads.data() + entry.offset);
    flatstep::StepOptions step_options;
    step_options.lr = 1e-2;
    adamw.step(buffers, step_options);
  }
  std::printf("%.4f %.4f\n", first, last);

  std::vector<std::int64_t> ids(4, tokens[0]);
  flatstep::Generation sequence{ids.data(), 1, 4, 1};
  const std::size_t needed = gpt.generation_workspace_bytes(1, 4);
  workspace.resize((needed + 63) / sizeof(std::max_align_t) + 1);
  flatstep::SampleOptions greedy;
  greedy.temperature = 0;
  gpt.generate(params.data(), sequence, 1, greedy, workspace.data(), needed);
  gpt.generate(params.data(), sequence, 2, greedy, workspace.data(), needed);
  const bool right = sequence.length == 4 && ids[1] == targets[0];
  return last < first / 2 && right ? 0 : 1;
}
