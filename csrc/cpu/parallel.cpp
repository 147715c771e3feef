#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#if defined(_OPENMP)
#  include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#  include <pthread.h>
#endif

namespace flatstep::cpu {
namespace {

std::atomic<int> configured_workers{0};  // 0: what OpenMP offers
std::atomic<bool> forked{false};

void run_serially(std::int64_t tasks, TaskFunction function, void* context) {
  for (std::int64_t task = 0; task < tasks; ++task) function(context, task, 0);
}

#if defined(_OPENMP)
void watch_for_forks() {
#  if defined(__unix__) || defined(__APPLE__)
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { forked = true; }); });
#  endif
}
#endif

}  // namespace

#if defined(_OPENMP)

bool has_openmp() { return true; }

int worker_count() {
  if (forked) return 1;
  const int configured = configured_workers;
  return configured > 0 ? configured : std::max(1, omp_get_max_threads());
}

void run_tasks(std::int64_t tasks, TaskFunction function, void* context) {
  const int workers = static_cast<int>(std::min<std::int64_t>(worker_count(), tasks));
  if (workers <= 1 || omp_in_parallel()) {
    run_serially(tasks, function, context);
    return;
  }
  watch_for_forks();
  // Workers take stretches of tasks as they come free; several a worker even out their speeds.
  const std::int64_t stretch = std::max<std::int64_t>(1, tasks / (workers * 16));
  std::atomic<std::int64_t> next{0};
#  pragma omp parallel num_threads(workers)
  {
    const int worker = omp_get_thread_num();
    for (std::int64_t begin;
         (begin = next.fetch_add(stretch, std::memory_order_relaxed)) < tasks;) {
      const std::int64_t end = std::min(tasks, begin + stretch);
      for (std::int64_t task = begin; task < end; ++task) function(context, task, worker);
    }
  }
}

#else

bool has_openmp() { return false; }
int worker_count() { return 1; }
void run_tasks(std::int64_t tasks, TaskFunction function, void* context) {
  run_serially(tasks, function, context);
}

#endif

void set_worker_count(int count) { configured_workers = count; }

}  // namespace flatstep::cpu
