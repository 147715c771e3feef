#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>

#include "cpu/isa_list.h"
#include "flatstep/error.h"

#define FLATSTEP_DECLARE(name) \
  namespace name {             \
  void fill(KernelTable&);     \
  }
namespace flatstep::cpu {
FLATSTEP_ISA_LIST(FLATSTEP_DECLARE)

namespace {

struct Candidate {
  const char* isa;
  void (*fill)(KernelTable&);
  bool runs_here;
};

bool processor_runs(const std::string& isa) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (isa == "x86_64_v3") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
  }
  if (isa == "x86_64_v4") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
  }
#endif
  (void)isa;
  return true;
}

std::vector<Candidate> candidates() {
#define FLATSTEP_CANDIDATE(name) Candidate{#name, name::fill, processor_runs(#name)},
  std::vector<Candidate> all = {FLATSTEP_ISA_LIST(FLATSTEP_CANDIDATE)};
  all.erase(std::remove_if(all.begin(), all.end(), [](const Candidate& c) { return !c.runs_here; }),
            all.end());
  return all;
}

std::size_t choose(const std::vector<Candidate>& all) {
  const char* wanted = std::getenv("FLATSTEP_ISA");
  if (wanted == nullptr || *wanted == '\0') return all.size() - 1;
  std::string names;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (std::string(wanted) == all[i].isa) return i;
    names += (i ? ", " : "") + std::string(all[i].isa);
  }
  throw InvalidArgument("FLATSTEP_ISA: got '" + std::string(wanted) +
                        "', this build on this processor runs: " + names);
}

struct Selection {
  std::vector<Candidate> all = candidates();
  std::size_t index = choose(all);
  KernelTable table{};
  Selection() {
    table.isa = all[index].isa;
    all[index].fill(table);
  }
};

const Selection& selection() {
  static const Selection chosen;  // a constructor that throws is tried again at the next call
  return chosen;
}

}  // namespace

const KernelTable& kernels() { return selection().table; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) names.emplace_back(candidate.isa);
  return names;
}

std::size_t selected_isa() { return selection().index; }

}  // namespace flatstep::cpu
