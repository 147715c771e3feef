#include "cpu/team.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace flatstep::cpu {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `ready`, at most for the given time; then says so. Jobs follow each other within
// microseconds, and waking a thread that sleeps costs more.
template <class Ready>
bool spin(std::chrono::microseconds limit, Ready ready) {
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

constexpr std::chrono::microseconds kIdleSpin{100};
constexpr std::chrono::microseconds kFinishSpin{20};
constexpr std::int64_t kStretches = 16;

}  // namespace

void Team::run(std::int64_t tasks, TaskFunction function, void* context, Order order) {
  // Several stretches a worker even out their speeds.
  const std::int64_t stretch = std::max<std::int64_t>(1, tasks / (workers_ * kStretches));
  const std::int64_t stretches = (tasks + stretch - 1) / stretch;
  unfinished_.store(tasks, std::memory_order_relaxed);
  ++job_;
  for (int worker = workers_ - 1; worker >= 0; --worker) {
    Share& share = shares_[static_cast<std::size_t>(worker)];
    share.function.store(function, std::memory_order_relaxed);
    share.context.store(context, std::memory_order_relaxed);
    share.tasks.store(tasks, std::memory_order_relaxed);
    share.stretch.store(stretch, std::memory_order_relaxed);
    share.order.store(order, std::memory_order_relaxed);
    const auto begin = static_cast<std::uint64_t>(stretches * worker / workers_);
    const auto end = static_cast<std::uint64_t>(stretches * (worker + 1) / workers_);
    share.range.store(job_ << 2 * kIndexBits | begin << kIndexBits | end,
                      std::memory_order_release);
  }
  // Of two threads that add to this count, the later one sees what the other wrote before: either
  // we see the sleeper, or the sleeper sees this job.
  if (sleepers_.fetch_add(0) > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  work(0);
  const auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  // A worker that was put aside inside a task may need this very processor.
  while (!spin(kFinishSpin, finished)) std::this_thread::yield();
}

std::int64_t Team::empty_share(Share& share, std::uint64_t job, int worker) {
  const Share& own = shares_[static_cast<std::size_t>(worker)];
  std::int64_t done = 0;
  std::uint64_t range = share.range.load(std::memory_order_acquire);
  while (range >> 2 * kIndexBits == job) {
    const std::uint64_t first = range >> kIndexBits & kIndexMask, last = range & kIndexMask;
    if (first == last) break;
    const TaskFunction function = own.function.load(std::memory_order_relaxed);
    void* context = own.context.load(std::memory_order_relaxed);
    const std::int64_t tasks = own.tasks.load(std::memory_order_relaxed);
    const std::int64_t stretch = own.stretch.load(std::memory_order_relaxed);
    const bool backwards = own.order.load(std::memory_order_relaxed) == Order::backwards;
    const bool front = (&share == &own) != backwards;
    const std::uint64_t left = front ? range + (std::uint64_t{1} << kIndexBits) : range - 1;
    if (!share.range.compare_exchange_weak(range, left, std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
      continue;
    }
    const std::int64_t begin = static_cast<std::int64_t>(front ? first : last - 1) * stretch;
    const std::int64_t stop = std::min(tasks, begin + stretch);
    for (std::int64_t i = begin; i < stop; ++i) {
      function(context, backwards ? begin + stop - 1 - i : i, worker);
    }
    done += stop - begin;
    range = share.range.load(std::memory_order_acquire);
  }
  return done;
}

std::uint64_t Team::job_of(int worker) const {
  return shares_[static_cast<std::size_t>(worker)].range.load(std::memory_order_acquire) >>
         2 * kIndexBits;
}

void Team::work(int worker) {
  const std::uint64_t job = job_of(worker);
  for (int i = 0; i < workers_; ++i) {
    Share& share = shares_[static_cast<std::size_t>((worker + i) % workers_)];
    const std::int64_t done = empty_share(share, job, worker);
    if (done > 0) unfinished_.fetch_sub(done, std::memory_order_acq_rel);
  }
}

void Team::wait_for_job(int worker, std::uint64_t seen) {
  const auto changed = [&] { return job_of(worker) != seen || stopped_.load(); };
  if (spin(kIdleSpin, changed)) return;
  sleepers_.fetch_add(1);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, changed);
  }
  sleepers_.fetch_sub(1);
}

void Team::serve(int worker) {
  while (!stopped_.load()) {
    const std::uint64_t seen = job_of(worker);
    work(worker);
    wait_for_job(worker, seen);
  }
}

void Team::stop() {
  stopped_.store(true);
  const std::lock_guard<std::mutex> lock(mutex_);
  wake_.notify_all();
}

}  // namespace flatstep::cpu
