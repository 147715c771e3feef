// How the threads of one OpenMP region share tasks. An OpenMP loop ends in a barrier that waits for
// every thread, also for one that the operating system has put aside; on a busy machine that costs
// milliseconds, a hundred times a step. Here the caller of a job waits only for tasks that another
// thread has begun; a thread that sleeps has begun none.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "cpu/parallel.h"

namespace flatstep::cpu {

class Team {
 public:
  explicit Team(int workers) : workers_(workers) {}

  int workers() const { return workers_; }

  // Runs a job; only the thread that owns the team calls this. It works as worker 0.
  void run(std::int64_t tasks, TaskFunction function, void* context);

  // What the other threads of the region do until stop().
  void serve(int worker);
  void stop();

 private:
  // The job's number in the upper bits, the tasks that nobody has taken in the lower ones. A thread
  // takes tasks by exchanging this word; that succeeds only while the job it read is the one
  // running, so the fields below cannot be those of another job.
  static constexpr int kCountBits = 40;
  static constexpr std::uint64_t kCountMask = (std::uint64_t{1} << kCountBits) - 1;

  // Takes and runs tasks until none is left.
  void work(int worker);
  void wait_for_job(std::uint64_t seen);

  const int workers_;
  std::uint64_t job_ = 0;
  std::atomic<bool> stopped_{false};
  std::atomic<TaskFunction> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<std::int64_t> tasks_{0};
  std::atomic<std::int64_t> stretch_{1};
  alignas(64) std::atomic<std::uint64_t> state_{0};
  alignas(64) std::atomic<std::int64_t> unfinished_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace flatstep::cpu
