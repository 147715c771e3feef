// Gpt::forward_backward: what a wrong call leaves as it was. What it computes is tested from
// Python.
#include <cstdint>
#include <vector>

#include "check.h"
#include "flatstep/gpt.h"

namespace {

using flatstep::DType;
using flatstep::GradPartials;
using flatstep::OutOfRange;

constexpr std::int64_t kBatch = 2, kLength = 5, kVocabulary = 21;

// Gradients and the norm's partial sums stay those of the pass before.
void check_refused_tokens() {
  const flatstep::Gpt gpt{{kVocabulary, kLength, 1, 2, 8, 0.0}};
  const auto size = static_cast<std::size_t>(gpt.layout().size());
  std::vector<float> params(size), grads(size);
  gpt.initialize(params.data(), 3);
  std::vector<char> workspace(gpt.training_workspace_bytes(kBatch, kLength));
  GradPartials partials(gpt.layout());
  flatstep::TrainOptions options;
  options.partials = &partials;
  std::vector<std::int64_t> tokens(kBatch * kLength, 7), targets(kBatch * kLength, 4);
  const auto pass = [&] {
    gpt.forward_backward(params.data(), grads.data(), {tokens.data(), DType::i64, kBatch, kLength},
                         {targets.data(), DType::i64, kBatch, kLength}, options, workspace.data(),
                         workspace.size());
  };
  pass();
  const double norm = partials.norm();
  const std::vector<float> before = grads;
  CHECK(norm > 0);
  for (std::vector<std::int64_t>* ids : {&tokens, &targets}) {
    const std::int64_t id = ids->back();
    ids->back() = kVocabulary;
    CHECK_THROWS(pass(), OutOfRange, "21");
    CHECK(partials.norm() == norm && grads == before);
    ids->back() = id;
  }
  pass();
  CHECK(partials.norm() == norm && grads == before);
}

}  // namespace

int main() {
  require_isa();
  check_refused_tokens();
  return report();
}
