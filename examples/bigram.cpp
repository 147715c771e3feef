// Trains a bigram model of its own source text: logits of the next byte are one row of a table.
#include <flatstep/flatstep.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

int main() {
  std::ifstream file(__FILE__);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const std::int64_t n = static_cast<std::int64_t>(text.size()) - 1, v = 128;
  std::vector<float> table(v * v), grads(v * v), m(v * v), v2(v * v), logits(n * v);
  std::vector<std::int32_t> targets(text.begin() + 1, text.end());
  std::vector<char> workspace(flatstep::cross_entropy_workspace_bytes(n, v));

  flatstep::Optimizer adamw({}, {{table.data(), m.data(), v2.data(), v * v}});
  for (int step = 0; step <= 100; ++step) {
    for (std::int64_t i = 0; i < n * v; ++i) logits[i] = table[text[i / v] * v + i % v];
    flatstep::CrossEntropyOutputs outputs;
    outputs.grad = logits.data();  // in place
    const double loss = flatstep::cross_entropy({logits.data(), flatstep::DType::f32, n, v},
                                                {targets.data(), flatstep::DType::i32, n}, {},
                                                outputs, workspace.data(), workspace.size())
                            .loss;
    for (std::int64_t i = 0; i < n * v; ++i) grads[text[i / v] * v + i % v] += logits[i];
    adamw.step({grads.data()}, {/*lr=*/0.1, /*max_norm=*/1.0, 1.0, /*zero_grad=*/true});
    if (step % 20 == 0) std::printf("step %3d  loss %.4f\n", step, loss);
  }
}
