// Gpt::generate: what it refuses, that it stays within its workspace, and that calls go on from
// each other. What it computes is tested from Python.
#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>

#include "check.h"
#include "flatstep/gpt.h"

namespace {

using flatstep::Generation;
using flatstep::InvalidArgument;
using flatstep::SampleOptions;

constexpr std::int64_t kBatch = 3, kCapacity = 14, kVocabulary = 21, kBlock = 9;

struct Case {
  flatstep::Gpt gpt{{kVocabulary, kBlock, 2, 2, 10, 0.0}};
  std::vector<float> params = std::vector<float>(static_cast<std::size_t>(gpt.layout().size()));
  std::vector<std::int64_t> ids = std::vector<std::int64_t>(kBatch * kCapacity, 7);
  std::size_t bytes = gpt.generation_workspace_bytes(kBatch, kCapacity);
  // A stretch behind the workspace that nobody may write to.
  std::vector<char> memory = std::vector<char>(bytes + kGuard, kMark);
  char* workspace = memory.data();

  static constexpr std::size_t kGuard = 4096;
  static constexpr char kMark = 0x5a;

  Case() {
    gpt.initialize(params.data(), 3);
    for (float& p : params) p *= 10;
  }

  Generation rows() { return {ids.data(), kBatch, kCapacity, 4}; }

  void generate(Generation& rows, std::int64_t n, const SampleOptions& options = {},
                float* logits = nullptr) {
    gpt.generate(params.data(), rows, n, options, workspace, bytes, logits);
  }

  bool guard_whole() const {
    return std::all_of(memory.end() - kGuard, memory.end(), [](char c) { return c == kMark; });
  }
};

// In one call or in several, with the cache or after it was given up: the same ids.
void check_calls_go_on() {
  SampleOptions options;
  options.top_p = 0.9;
  options.seed = 5;
  Case whole;
  Generation all = whole.rows();
  whole.generate(all, kCapacity - 4, options);
  CHECK(all.length == kCapacity);
  CHECK(whole.guard_whole());
  for (const bool keep : {true, false}) {
    Case pieces;
    Generation some = pieces.rows();
    std::vector<float> logits(kBatch * kVocabulary);
    for (const std::int64_t n : {0, 1, 3, 0, 2, 4}) {
      if (!keep) some.cached = 0;
      pieces.generate(some, n, options, logits.data());
    }
    CHECK(some.length == kCapacity && some.cached == kBlock);
    CHECK(pieces.ids == whole.ids);
    CHECK(pieces.guard_whole());
    CHECK(std::any_of(logits.begin(), logits.end(), [](float x) { return x != 0; }));
  }
}

template <class Change>
void check_refused(const char* text, const Change& change) {
  Case c;
  Generation rows = c.rows();
  std::int64_t n = 3;
  SampleOptions options;
  change(c, rows, n, options);
  const auto before = c.ids;
  CHECK_THROWS(c.generate(rows, n, options), std::exception, text);
  CHECK(c.ids == before);
}

void check_refusals() {
  using Rows = Generation&;
  using N = std::int64_t&;
  using Options = SampleOptions&;
  check_refused("tokens: got 0, expected a batch", [](Case&, Rows r, N, Options) { r.batch = 0; });
  check_refused("tokens: got 0, expected at", [](Case&, Rows r, N, Options) { r.length = 0; });
  check_refused("tokens: got a null", [](Case&, Rows r, N, Options) { r.ids = nullptr; });
  check_refused("n: got -1", [](Case&, Rows, N n, Options) { n = -1; });
  check_refused("n: got 11, expected at most the room in the sequences, 10",
                [](Case&, Rows, N n, Options) { n = 11; });
  check_refused("cached: got -1", [](Case&, Rows r, N, Options) { r.cached = -1; });
  check_refused("cached: got 5", [](Case&, Rows r, N, Options) { r.cached = 5; });
  check_refused("row 2, position 3 holds 21, expected an id from 0 to 20",
                [](Case& c, Rows, N, Options) { c.ids[2 * kCapacity + 3] = kVocabulary; });
  check_refused("workspace_bytes: got", [](Case& c, Rows, N, Options) { --c.bytes; });
  check_refused("temperature: got", [](Case&, Rows, N, Options o) { o.temperature = -1; });
  check_refused("top_k: got -1", [](Case&, Rows, N, Options o) { o.top_k = -1; });
  check_refused("top_p: got 1.5", [](Case&, Rows, N, Options o) { o.top_p = 1.5; });
  check_refused("logits: got NaN", [](Case& c, Rows, N, Options) {
    c.params.back() = std::numeric_limits<float>::quiet_NaN();
  });
  const Case c;
  CHECK_THROWS(c.gpt.generation_workspace_bytes(0, 5), InvalidArgument, "tokens");
  CHECK_THROWS(c.gpt.generation_workspace_bytes(1, 0), InvalidArgument, "tokens");
}

}  // namespace

int main() {
  require_isa();
  check_calls_go_on();
  check_refusals();
  return report();
}
