// Times matrix products: `bench_gemm` ours, `bench_gemm LIBRARY` those of a CBLAS in a shared
// library. `--shape m,n,k,ta,tb` (transposed: 1), any number of times, replaces the training step's
// shapes, `--repeats` their number of runs. One JSON line a shape: the median over the repeats.
// gemm.py runs the two in turn; in one process the rival's spinning threads would slow ours.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/isa.h"

namespace {

using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int,
                       float, float*, int);

struct Shape {
  std::string use;
  bool transpose_a, transpose_b;
  std::int64_t m, n, k;
};

// The products of a step at 6 layers x 384 x 2048 tokens, 4 layers x 128 x 768 tokens, and of
// GPT-2's head at 256 tokens.
const Shape kShapes[] = {
    {"384 qkv forward", false, false, 2048, 1152, 384},
    {"384 projection forward", false, false, 2048, 384, 384},
    {"384 mlp up forward", false, false, 2048, 1536, 384},
    {"384 mlp down forward", false, false, 2048, 384, 1536},
    {"384 mlp up input gradient", false, true, 2048, 384, 1536},
    {"384 mlp down input gradient", false, true, 2048, 1536, 384},
    {"384 mlp up weight gradient", true, false, 384, 1536, 2048},
    {"384 mlp down weight gradient", true, false, 1536, 384, 2048},
    {"128 qkv forward", false, false, 768, 384, 128},
    {"128 mlp down forward", false, false, 768, 128, 512},
    {"128 mlp up input gradient", false, true, 768, 128, 512},
    {"128 mlp up weight gradient", true, false, 128, 512, 768},
    {"gpt2 head logits", false, true, 256, 50257, 768},
    {"gpt2 head input gradient", false, false, 256, 768, 50257},
    {"gpt2 head weight gradient", true, false, 50257, 768, 256},
};

std::vector<float> random_matrix(std::int64_t size) {
  std::vector<float> values(static_cast<std::size_t>(size));
  std::minstd_rand next;
  for (float& value : values) value = static_cast<float>(next()) / 0x1p31f - 0.5f;
  return values;
}

template <class Run>
double median_seconds(int repeats, Run run) {
  std::vector<double> seconds;
  run();
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

Sgemm load_sgemm(const char* path) {
  void* library = dlopen(path, RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(2);
  }
  for (const char* name : {"scipy_cblas_sgemm", "cblas_sgemm"}) {
    if (void* symbol = dlsym(library, name)) return reinterpret_cast<Sgemm>(symbol);
  }
  std::fprintf(stderr, "%s: no cblas_sgemm\n", path);
  std::exit(2);
}

Shape parse_shape(const char* text) {
  long long m = 0, n = 0, k = 0;
  int transpose_a = 0, transpose_b = 0;
  if (std::sscanf(text, "%lld,%lld,%lld,%d,%d", &m, &n, &k, &transpose_a, &transpose_b) != 5 ||
      std::min({m, n, k}) < 1) {
    std::fprintf(stderr, "--shape: got %s, expected m,n,k,ta,tb\n", text);
    std::exit(2);
  }
  return {text, transpose_a != 0, transpose_b != 0, m, n, k};
}

struct Options {
  Sgemm sgemm = nullptr;
  int repeats = 0;  // 0: enough for a steady median
  std::vector<Shape> shapes;
};

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (i + 1 < argc && std::strcmp(argv[i], "--shape") == 0) {
      options.shapes.push_back(parse_shape(argv[++i]));
    } else if (i + 1 < argc && std::strcmp(argv[i], "--repeats") == 0) {
      options.repeats = std::atoi(argv[++i]);
    } else {
      options.sgemm = load_sgemm(argv[i]);
    }
  }
  if (options.shapes.empty()) options.shapes.assign(std::begin(kShapes), std::end(kShapes));
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  const Sgemm sgemm = options.sgemm;
  for (const Shape& s : options.shapes) {
    std::vector<float> workspace(flatstep::cpu::gemm_workspace_floats(s.m, s.n, s.k));
    const auto a = random_matrix(s.m * s.k), b = random_matrix(s.k * s.n);
    auto c = random_matrix(s.m * s.n);
    const std::int64_t lda = s.transpose_a ? s.m : s.k, ldb = s.transpose_b ? s.k : s.n;
    const flatstep::Gemm call{s.transpose_a, s.transpose_b, s.m,      s.n, s.k,   a.data(), lda,
                              b.data(),      ldb,           c.data(), s.n, false, nullptr};
    const double flops = 2.0 * static_cast<double>(s.m * s.n * s.k);
    const int enough = static_cast<int>(std::clamp(2e10 / flops, 7.0, 400.0));
    const double seconds = median_seconds(options.repeats > 0 ? options.repeats : enough, [&] {
      if (sgemm == nullptr) {
        flatstep::cpu::gemm(call, workspace.data());
        return;
      }
      const auto integer = [](std::int64_t value) { return static_cast<int>(value); };
      sgemm(101, s.transpose_a ? 112 : 111, s.transpose_b ? 112 : 111, integer(s.m), integer(s.n),
            integer(s.k), 1.0f, a.data(), integer(lda), b.data(), integer(ldb), 0.0f, c.data(),
            integer(s.n));
    });
    std::printf(
        "{\"use\": \"%s\", \"m\": %lld, \"n\": %lld, \"k\": %lld, \"gflops\": %.1f, "
        "\"seconds\": %.9f}\n",
        s.use.c_str(), static_cast<long long>(s.m), static_cast<long long>(s.n),
        static_cast<long long>(s.k), flops / seconds / 1e9, seconds);
  }
  return 0;
}
