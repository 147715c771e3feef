// How the threads of one OpenMP region share tasks. An OpenMP loop ends in a barrier that waits for
// every thread, also for one that the operating system has put aside; on a busy machine that costs
// milliseconds, a hundred times a step. Here the caller of a job waits only for tasks that another
// thread has begun; a thread that sleeps has begun none. Each thread has the same part of the tasks
// of every job of a size, as far as it keeps up: what one job left in its caches, the next one
// finds.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/parallel.h"

namespace flatstep::cpu {

class Team {
 public:
  explicit Team(int workers) : workers_(workers), shares_(static_cast<std::size_t>(workers)) {}

  int workers() const { return workers_; }

  // Runs a job; only the thread that owns the team calls this. It works as worker 0.
  void run(std::int64_t tasks, TaskFunction function, void* context, Order order = Order::forwards);

  // What the other threads of the region do until stop().
  void serve(int worker);
  void stop();

 private:
  // What is left of a job for one worker: its number, and the first and the end of a range of
  // stretches of tasks. The worker takes from the front, or in a job that goes backwards from the
  // back, others who have nothing left from the other end, by exchanging `range`. That succeeds
  // only while the job that was read is the one running, so the fields beside it cannot be those of
  // another job.
  static constexpr int kIndexBits = 20;
  static constexpr std::uint64_t kIndexMask = (std::uint64_t{1} << kIndexBits) - 1;
  struct alignas(64) Share {
    std::atomic<std::uint64_t> range{0};
    std::atomic<TaskFunction> function{nullptr};
    std::atomic<void*> context{nullptr};
    std::atomic<std::int64_t> tasks{0}, stretch{1};
    std::atomic<Order> order{Order::forwards};
  };

  // Takes stretches from a share of the given job, the worker's own or another's, and runs them
  // until none is left; how many tasks that were.
  std::int64_t empty_share(Share& share, std::uint64_t job, int worker);
  // Empties the worker's own share, then the others'.
  void work(int worker);
  std::uint64_t job_of(int worker) const;
  void wait_for_job(int worker, std::uint64_t seen);

  const int workers_;
  std::uint64_t job_ = 0;
  std::vector<Share> shares_;
  std::atomic<bool> stopped_{false};
  alignas(64) std::atomic<std::int64_t> unfinished_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace flatstep::cpu
