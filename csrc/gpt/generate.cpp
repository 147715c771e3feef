#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/checks.h"
#include "core/philox.h"
#include "flatstep/gpt.h"

namespace flatstep {
namespace {

// A uniform number in [0, 1), a pure function of the seed and the position.
double uniform(std::uint64_t seed, std::int64_t position) {
  const PhiloxWord4 random = philox(seed, static_cast<std::uint32_t>(position),
                                    static_cast<std::uint32_t>(position >> 32), 1, 0);
  const std::uint64_t bits = std::uint64_t{random.word[0]} << 32 | random.word[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// Draws from softmax(logits / temperature) over the top_k largest logits.
std::int64_t draw(const float* logits, std::int64_t size, const SampleOptions& options,
                  double random, std::vector<std::int64_t>& order, std::vector<double>& weights) {
  const std::int64_t best = std::max_element(logits, logits + size) - logits;
  if (options.temperature == 0) return best;
  std::int64_t kept = size;
  order.resize(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (options.top_k > 0 && options.top_k < size) {
    kept = options.top_k;
    // Equal logits keep the order of their ids, so that the choice is the same everywhere.
    std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                      [&](std::int64_t a, std::int64_t b) {
                        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                      });
  }
  weights.resize(static_cast<std::size_t>(kept));
  double total = 0;
  for (std::int64_t i = 0; i < kept; ++i) {
    const double shifted = static_cast<double>(logits[order[i]]) - logits[best];
    weights[i] = std::exp(shifted / options.temperature);
    total += weights[i];
  }
  double left = random * total;
  for (std::int64_t i = 0; i < kept; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return best;
}

}  // namespace

void Gpt::generate(const float* params, std::int64_t* sequence, std::int64_t length,
                   std::int64_t n_new, const SampleOptions& options, void* workspace,
                   std::size_t workspace_bytes) const {
  require(length >= 1, "tokens", length, "at least one token to go on from");
  require(n_new >= 0, "n", n_new, "a number of tokens >= 0");
  require(std::isfinite(options.temperature) && options.temperature >= 0, "temperature",
          options.temperature, "a finite number >= 0");
  require(options.top_k >= 0, "top_k", options.top_k, "a number >= 1");
  const std::int64_t longest = std::min(config_.block_size, length + n_new);
  require_workspace(workspace, workspace_bytes, inference_workspace_bytes(1, longest));
  std::vector<float> last(static_cast<std::size_t>(config_.vocab_size));
  std::vector<std::int64_t> order;
  std::vector<double> weights;
  for (std::int64_t i = length; i < length + n_new; ++i) {
    const std::int64_t context = std::min(i, config_.block_size);
    run_inference(params, {sequence + (i - context), DType::i64, 1, context}, context - 1,
                  last.data(), workspace, workspace_bytes);
    sequence[i] =
        draw(last.data(), config_.vocab_size, options, uniform(options.seed, i), order, weights);
  }
}

}  // namespace flatstep
