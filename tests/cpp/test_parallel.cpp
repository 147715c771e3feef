// Every task runs once, for any number of tasks and threads, nested and from several threads.
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"

namespace {

using flatstep::cpu::alone;
using flatstep::cpu::has_openmp;
using flatstep::cpu::Order;
using flatstep::cpu::parallel_for;
using flatstep::cpu::run_halves;
using flatstep::cpu::with_team;
using flatstep::cpu::worker_count;

void check_each_runs_once(std::int64_t tasks) {
  for (const Order order : {Order::forwards, Order::backwards}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
    std::atomic<int> strangers{0};
    parallel_for(
        tasks,
        [&](std::int64_t task, int worker) {
          ++runs[static_cast<std::size_t>(task)];
          if (worker < 0 || worker >= worker_count()) ++strangers;
        },
        order);
    for (const auto& count : runs) CHECK(count == 1);
    CHECK(strangers == 0);
  }
}

// A thread alone goes through all tasks in that order.
void check_order() {
  std::vector<std::int64_t> seen;
  for (const Order order : {Order::backwards, Order::forwards}) {
    alone([&] { parallel_for(3, [&](std::int64_t task, int) { seen.push_back(task); }, order); });
  }
  CHECK((seen == std::vector<std::int64_t>{2, 1, 0, 0, 1, 2}));
}

// Several begin in the same part whichever way they go. The tasks wait for each other, so that each
// worker has the first one of its part.
void check_parts() {
  if (!has_openmp()) return;
  with_team([] {
    const int workers = worker_count();
    for (const Order order : {Order::forwards, Order::backwards}) {
      std::atomic<int> begun{0}, elsewhere{0};
      parallel_for(
          workers,
          [&](std::int64_t task, int worker) {
            if (task != worker) ++elsewhere;
            ++begun;
            while (begun < workers) std::this_thread::yield();
          },
          order);
      CHECK(elsewhere == 0);
    }
  });
}

void check_nested() {
  std::atomic<int> inner{0};
  parallel_for(20, [&](std::int64_t, int) {
    parallel_for(5, [&](std::int64_t, int worker) {
      if (worker == 0) ++inner;  // serial inside a task
    });
  });
  CHECK(inner == 100);
}

void check_many_jobs() {
  // Jobs that follow each other at once: no task of one may run as a task of the next.
  with_team([] {
    for (int round = 0; round < 3000; ++round) {
      const std::int64_t tasks = 1 + round % 37;
      std::atomic<std::int64_t> sum{0};
      parallel_for(tasks, [&](std::int64_t task, int) { sum += task + 1; });
      CHECK(sum == tasks * (tasks + 1) / 2);
    }
  });
}

// Both halves run once, with teams of their own where the workers are even in number.
void check_halves() {
  with_team([] {
    const int workers = worker_count();
    for (int round = 0; round < 300; ++round) {
      std::atomic<std::int64_t> sums[2] = {};
      std::atomic<int> strangers{0};
      run_halves([&](int half) {
        const int own = worker_count();
        if (own != (workers % 2 == 0 ? workers / 2 : workers)) ++strangers;
        for (const std::int64_t tasks : {1, 40, 7}) {
          parallel_for(tasks, [&](std::int64_t task, int worker) {
            sums[half] += task + 1;
            if (worker < 0 || worker >= own) ++strangers;
          });
        }
      });
      for (const auto& sum : sums) CHECK(sum == 1 + 820 + 28);
      CHECK(strangers == 0);
      CHECK(worker_count() == workers);
    }
    for (const int thrower : {0, 1}) {
      std::atomic<int> ended{0};
      CHECK_THROWS(run_halves([&](int half) {
                     ++ended;
                     if (half == thrower) throw std::runtime_error("out of a half");
                   }),
                   std::runtime_error, "out of a half");
      CHECK(ended == (thrower == 1 || workers % 2 == 0 ? 2 : 1));
    }
  });
  int runs = 0;  // without a team, and inside a task: one after the other
  run_halves([&](int half) { runs += half + 1; });
  CHECK(runs == 3);
  std::atomic<int> inner{0};
  parallel_for(8, [&](std::int64_t, int) { run_halves([&](int half) { inner += half + 1; }); });
  CHECK(inner == 24);
}

void check_exceptions() {
  CHECK_THROWS(with_team([] { throw std::runtime_error("out of the team"); }), std::runtime_error,
               "out of the team");
  check_each_runs_once(100);
}

}  // namespace

int main() {
  require_isa();
  for (const int threads : {1, 2, 3, 4, 7}) {
    flatstep::cpu::set_worker_count(threads);
    for (const std::int64_t tasks : {0, 1, 2, 31, 1000}) check_each_runs_once(tasks);
    check_nested();
    check_order();
    check_parts();
    check_many_jobs();
    check_halves();
    check_exceptions();
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
      callers.emplace_back([] {
        check_many_jobs();
        check_halves();
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  return report();
}
