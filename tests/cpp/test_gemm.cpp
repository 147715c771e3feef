// The matrix product against a double-precision one: every transposition, sizes around the tile
// and the packed block, strides, bias, accumulation, and the same bits for any number of threads.
#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"

namespace {

using flatstep::Gemm;

float noise(std::uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
}

struct Case {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b, accumulate, bias;
};

void run(const Case& c) {
  std::uint32_t state = 7;
  const std::int64_t pad = 3;  // strides are wider than the matrices
  const std::int64_t lda = (c.transpose_a ? c.m : c.k) + pad;
  const std::int64_t ldb = (c.transpose_b ? c.k : c.n) + pad;
  const std::int64_t ldc = c.n + pad;
  std::vector<float> a(lda * (c.transpose_a ? c.k : c.m)), b(ldb * (c.transpose_b ? c.n : c.k));
  std::vector<float> before(ldc * c.m), bias(c.n);
  for (auto* values : {&a, &b, &before, &bias}) {
    for (float& value : *values) value = noise(state);
  }
  // The workspace of a somewhat larger product has to do; what lies behind it is not touched.
  const std::size_t floats = flatstep::cpu::gemm_workspace_floats(c.m + 100, c.n + 9, c.k + 2);
  const float untouched = 3.0f;
  std::vector<float> workspace(floats + 1024, untouched);
  const auto product = [&](int threads) {
    std::vector<float> result = before;
    const Gemm call{c.transpose_a,
                    c.transpose_b,
                    c.m,
                    c.n,
                    c.k,
                    a.data(),
                    lda,
                    b.data(),
                    ldb,
                    result.data(),
                    ldc,
                    c.accumulate,
                    c.bias ? bias.data() : nullptr};
    flatstep::cpu::set_worker_count(threads);
    flatstep::cpu::gemm(call, workspace.data());
    return result;
  };
  const std::vector<float> result = product(1);
  for (const int threads : {2, 3, 7}) CHECK(product(threads) == result);
  for (std::size_t i = floats; i < workspace.size(); ++i) CHECK(workspace[i] == untouched);

  for (std::int64_t i = 0; i < c.m; ++i) {
    for (std::int64_t j = 0; j < ldc; ++j) {
      const std::int64_t at = i * ldc + j;
      if (j >= c.n) {  // the padding is not written
        CHECK(result[at] == before[at]);
        continue;
      }
      double sum = c.accumulate ? before[at] : 0.0;
      if (c.bias) sum += bias[j];
      double size = std::fabs(sum);
      for (std::int64_t p = 0; p < c.k; ++p) {
        const double product = double{a[c.transpose_a ? p * lda + i : i * lda + p]} *
                               b[c.transpose_b ? j * ldb + p : p * ldb + j];
        sum += product;
        size += std::fabs(product);
      }
      // Summing k terms in any order: at most k roundings of the sum of magnitudes.
      const double bound = (static_cast<double>(c.k) + 4) * 0x1p-24 * size;
      CHECK(std::fabs(result[at] - sum) <= bound);
    }
  }
}

// Every element of C is in one region, and complete when the region is finished.
void check_regions(std::int64_t m, std::int64_t n, bool transpose_a, bool transpose_b) {
  const std::int64_t k = 900;  // more than one block
  const std::vector<float> a(m * k, 0.5f), b(n * k, 2.0f);
  std::vector<float> c(m * n), visited(m * n);
  std::vector<float> workspace(flatstep::cpu::gemm_workspace_floats(m, n, k));
  const Gemm call{
      transpose_a, transpose_b,         m,        n, k,     a.data(), transpose_a ? m : k,
      b.data(),    transpose_b ? k : n, c.data(), n, false, nullptr};
  const std::int64_t stretch = flatstep::cpu::gemm_region_rows(m, n);
  flatstep::cpu::set_worker_count(2);
  flatstep::cpu::gemm_then(call, workspace.data(), [&](const flatstep::cpu::GemmRegion& region) {
    for (std::int64_t i = region.row; i < region.row + region.rows; ++i) {
      for (std::int64_t j = region.column; j < region.column + region.columns; ++j) {
        visited[i * n + j] += c[i * n + j];
      }
    }
    if (region.row % stretch != 0 || region.rows > stretch) visited[region.row * n] = -1;
  });
  CHECK(visited == std::vector<float>(m * n, static_cast<float>(k)));
}

}  // namespace

int main() {
  require_isa();
  for (int flags = 0; flags < 16; ++flags) {
    const bool ta = flags & 1, tb = flags & 2, accumulate = flags & 4, bias = flags & 8;
    run({1, 1, 1, ta, tb, accumulate, bias});
    run({5, 7, 3, ta, tb, accumulate, bias});      // below one tile
    run({13, 33, 17, ta, tb, accumulate, bias});   // one tile and an edge for every ISA
    run({97, 129, 50, ta, tb, accumulate, bias});  // more than one task
    run({24, 64, 400, ta, tb, accumulate, bias});  // more than one block of k
  }
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      run({1, 96, 40, ta, tb, false, true});      // one row: B is not packed
      run({60, 64, 96, ta, tb, true, false});     // small: nothing is packed that need not be
      run({60, 640, 96, ta, tb, false, true});    // each task packs its columns of B
      run({530, 96, 1100, ta, tb, true, true});   // more rows than that, more than one block of k
      run({100, 300, 700, ta, tb, false, true});  // a transposed A in the second-level cache
      run({40, 150, 4500, ta, tb, true, false});  // few rows, deep
      run({250, 1290, 2150, ta, tb, true,
           true});  // wide and deep: tasks pack columns, k by stretches
      check_regions(530, 300, ta, tb);
      check_regions(60, 640, ta, tb);
    }
  }
  for (const std::int64_t k : {128, 255, 384, 700}) {  // a small weight's gradient
    for (const bool accumulate : {false, true}) {
      run({64, 192, k, true, false, accumulate, false});
      run({29, 64, k, true, false, accumulate, false});
    }
  }
  run({2400, 17, 5, false, false, true, true});  // more rows than are packed at a time
  run({17, 3100, 5, true, true, true, true});    // more columns
  return report();
}
