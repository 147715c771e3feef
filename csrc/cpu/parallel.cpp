#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "cpu/team.h"

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

// The team that this thread owns, and whether this thread is inside a task.
thread_local Team* own_team = nullptr;
thread_local bool inside_task = false;

void run_serially(std::int64_t tasks, TaskFunction function, void* context, Order order) {
  for (std::int64_t i = 0; i < tasks; ++i) {
    function(context, order == Order::forwards ? i : tasks - 1 - i, 0);
  }
}

[[maybe_unused]] void watch_for_forks() {
#if defined(__unix__) || defined(__APPLE__)
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork(nullptr, nullptr, [] {
      forked = true;
      own_team = nullptr;
      inside_task = false;
    });
  });
#endif
}

// Sets a value for the lifetime of a scope.
template <class T>
class Scoped {
 public:
  Scoped(T& variable, T value) : variable_(variable), before_(variable) { variable = value; }
  ~Scoped() { variable_ = before_; }

 private:
  T& variable_;
  T before_;
};

}  // namespace

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

int worker_count() {
#if defined(_OPENMP)
  if (own_team != nullptr) return own_team->workers();
  if (forked) return 1;
  const int configured = configured_workers;
  return configured > 0 ? configured : std::max(1, omp_get_max_threads());
#else
  return 1;
#endif
}

void set_worker_count(int count) { configured_workers = count; }

void run_with_team(void (*body)(void* context), void* context) {
  const int workers = worker_count();
#if defined(_OPENMP)
  if (workers > 1 && own_team == nullptr && !inside_task && !omp_in_parallel()) {
    watch_for_forks();
    Team team(workers);
    std::exception_ptr error;
#  pragma omp parallel num_threads(workers)
    {
      if (omp_get_thread_num() == 0) {
        const Scoped<Team*> owner(own_team, &team);
        try {
          body(context);
        } catch (...) {
          error = std::current_exception();
        }
        team.stop();
      } else {
        const Scoped<bool> task(inside_task, true);
        team.serve(omp_get_thread_num());
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  (void)workers;
  run_alone(body, context);
}

void run_alone(void (*body)(void* context), void* context) {
  if (own_team != nullptr || inside_task) return body(context);
  Team absent(worker_count());  // so that the number stays, whoever sets another meanwhile
  const Scoped<Team*> owner(own_team, &absent);
  const Scoped<bool> task(inside_task, true);
  body(context);
}

void run_tasks(std::int64_t tasks, TaskFunction function, void* context, Order order) {
  if (tasks <= 1 || inside_task || worker_count() <= 1) {
    run_serially(tasks, function, context, order);
  } else if (own_team != nullptr) {
    const Scoped<bool> task(inside_task, true);
    own_team->run(tasks, function, context, order);
  } else {
#if defined(_OPENMP)
    if (omp_in_parallel()) {
      run_serially(tasks, function, context, order);
      return;
    }
#endif
    with_team([&] { run_tasks(tasks, function, context, order); });
  }
}

void run_halves(const std::function<void(int half)>& body) {
  const int workers = worker_count();
  if (own_team == nullptr || inside_task || workers % 2 != 0) {
    body(0);
    body(1);
    return;
  }
  // Every worker of the team has one task: to lead a half, or to serve its leader. Whoever comes
  // late to serve finds that the leader did all of it.
  Team first(workers / 2), second(workers / 2);
  Team* const teams[] = {&first, &second};
  std::exception_ptr errors[2];
  parallel_for(workers, [&](std::int64_t task, int) {
    const int half = static_cast<int>(task) / (workers / 2);
    const int worker = static_cast<int>(task) % (workers / 2);
    Team& team = *teams[half];
    if (worker > 0) return team.serve(worker);
    const Scoped<Team*> owner(own_team, &team);
    const Scoped<bool> leader(inside_task, false);
    try {
      body(half);
    } catch (...) {
      errors[half] = std::current_exception();
    }
    team.stop();
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace flatstep::cpu
