#include "gpt/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/checks.h"
#include "core/philox.h"

namespace flatstep {
namespace {

// A uniform number in [0, 1), a pure function of the seed and the position.
double uniform(std::uint64_t seed, std::int64_t position) {
  const PhiloxWord4 random = philox(seed, static_cast<std::uint32_t>(position),
                                    static_cast<std::uint32_t>(position >> 32), 1, 0);
  const std::uint64_t bits = std::uint64_t{random.word[0]} << 32 | random.word[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// The most likely token, the first of equals; -1 as draw() has it.
std::int64_t most_likely(const float* logits, std::int64_t size) {
  std::int64_t best = 0;
  bool numbers = true;
  for (std::int64_t i = 0; i < size; ++i) {
    numbers = numbers && !std::isnan(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  return numbers && std::isfinite(logits[best]) ? best : -1;
}

// Tokens in falling order of their logits, as many as asked for one after the other: a heap of all,
// since few are asked for. Equal logits keep the order of their ids, so that the choice is the same
// everywhere.
class Ranking {
 public:
  Ranking(const float* logits, std::int64_t* order, std::int64_t size)
      : logits_(logits), order_(order), end_(order + size), last_(end_ - 1) {
    std::iota(order_, end_, std::int64_t{0});
    std::make_heap(order_, end_, Less{logits_});
  }

  std::int64_t next() {
    std::pop_heap(order_, end_, Less{logits_});
    return *--end_;
  }

  // The token of a rank that next() has passed.
  std::int64_t at(std::int64_t rank) const { return last_[-rank]; }

 private:
  struct Less {
    const float* logits;
    bool operator()(std::int64_t a, std::int64_t b) const {
      return logits[a] != logits[b] ? logits[a] < logits[b] : a > b;
    }
  };

  const float* logits_;
  std::int64_t* order_;
  std::int64_t* end_;
  std::int64_t* last_;
};

// What the tokens of one draw share.
struct Draw {
  const float* logits;
  std::int64_t size, best;
  double temperature;
  std::int64_t* order;
  double* weights;

  double weight(std::int64_t token) const {
    return std::exp((static_cast<double>(logits[token]) - logits[best]) / temperature);
  }

  // The index of the weight that `left`, a share of their sum, falls on.
  std::int64_t index_at(double left, std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) {
      left -= weights[i];
      if (left < 0) return i;
    }
    return count - 1;  // roundings
  }

  std::int64_t of_all(double random) const {
    double total = 0;
    for (std::int64_t i = 0; i < size; ++i) total += weights[i] = weight(i);
    return index_at(random * total, size);
  }

  // Of the `kept` most likely, and of these the fewest whose share reaches top_p, one at least.
  std::int64_t of_most_likely(double random, std::int64_t kept, double top_p) const {
    Ranking ranking(logits, order, size);
    double total = 0, sum = 0;
    if (kept == size) {  // few of them will be ranked
      for (std::int64_t i = 0; i < size; ++i) total += weight(i);
    } else {
      for (std::int64_t i = 0; i < kept; ++i) total += weight(ranking.next());
    }
    std::int64_t count = 0;
    while (count < kept && (count == 0 || sum < top_p * total)) {
      sum += weights[count] = weight(kept == size ? ranking.next() : ranking.at(count));
      ++count;
    }
    return ranking.at(index_at(random * sum, count));
  }
};

}  // namespace

void check_options(const SampleOptions& options) {
  require(std::isfinite(options.temperature) && options.temperature >= 0, "temperature",
          options.temperature, "a finite number >= 0");
  require(options.top_k >= 0, "top_k", options.top_k, "a number >= 0");
  require(options.top_p >= 0 && options.top_p <= 1, "top_p", options.top_p, "a number in [0, 1]");
}

std::int64_t draw(const float* logits, std::int64_t size, const SampleOptions& options,
                  std::uint64_t seed, std::int64_t position, std::int64_t* order, double* weights) {
  const std::int64_t best = most_likely(logits, size);
  if (best < 0 || options.temperature == 0) return best;
  const Draw draw{logits, size, best, options.temperature, order, weights};
  const double random = uniform(seed, position);
  const bool few = options.top_k > 0 && options.top_k < size;
  if (!few && options.top_p == 1) return draw.of_all(random);
  return draw.of_most_likely(random, few ? options.top_k : size, options.top_p);
}

}  // namespace flatstep
