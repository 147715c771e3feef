// The one way to run work on several threads. Tasks must not depend on each other, and what a task
// computes must not depend on the worker that runs it: then no result depends on the thread count.
#pragma once

#include <cstdint>
#include <functional>

#include "flatstep/export.h"

namespace flatstep::cpu {

using TaskFunction = void (*)(void* context, std::int64_t task, int worker);

// Where a worker begins in its part of the tasks: backwards with those that a job before, which
// went forwards, has left in its caches.
enum class Order { forwards, backwards };

// Calls function(context, task, worker) for every task in [0, tasks); worker < worker_count().
// Serial with one thread, inside another task, and in a child that was forked after threads were
// used (those of libgomp do not survive fork). The function must not throw.
FLATSTEP_API void run_tasks(std::int64_t tasks, TaskFunction function, void* context,
                            Order order = Order::forwards);

// Calls body(context) on this thread with the other threads standing by, so that many run_tasks in
// a row pay for one OpenMP region. `body` may throw.
FLATSTEP_API void run_with_team(void (*body)(void* context), void* context);

// Calls body(context) on this thread, serially unless it has a team. worker_count(), and what is
// sized by it, is what it is in run_with_team.
FLATSTEP_API void run_alone(void (*body)(void* context), void* context);

// Calls body(0) and body(1). In run_with_team with an even number of workers they run side by side,
// each with half of the workers, and both have ended when an exception of one goes on; else one
// after the other.
FLATSTEP_API void run_halves(const std::function<void(int half)>& body);

// The greatest number of workers that run_tasks may use now; sizes scratch that each worker owns.
FLATSTEP_API int worker_count();

FLATSTEP_API void set_worker_count(int count);
FLATSTEP_API bool has_openmp();

template <class Function>
void parallel_for(std::int64_t tasks, Function&& function, Order order = Order::forwards) {
  run_tasks(
      tasks,
      [](void* context, std::int64_t task, int worker) {
        (*static_cast<Function*>(context))(task, worker);
      },
      &function, order);
}

// parallel_for over [0, size) in fixed stretches: function(begin, end).
template <class Function>
void parallel_ranges(std::int64_t size, std::int64_t stretch, Function&& function,
                     Order order = Order::forwards) {
  parallel_for((size + stretch - 1) / stretch,
               [&](std::int64_t task, int) {
                 const std::int64_t begin = task * stretch;
                 function(begin, begin + stretch < size ? begin + stretch : size);
               },
               order);
}

// run_with_team and run_alone for a callable.
template <class Body>
void with_team(const Body& body) {
  run_with_team([](void* context) { (*static_cast<const Body*>(context))(); },
                const_cast<Body*>(&body));
}
template <class Body>
void alone(const Body& body) {
  run_alone([](void* context) { (*static_cast<const Body*>(context))(); },
            const_cast<Body*>(&body));
}

}  // namespace flatstep::cpu
