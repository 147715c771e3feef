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

}  // namespace

void Team::run(std::int64_t tasks, TaskFunction function, void* context) {
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  tasks_.store(tasks, std::memory_order_relaxed);
  // Several stretches a worker even out their speeds.
  stretch_.store(std::max<std::int64_t>(1, tasks / (workers_ * 16)), std::memory_order_relaxed);
  unfinished_.store(tasks, std::memory_order_relaxed);
  ++job_;
  // Sequentially consistent with the sleepers' count: either the sleeper sees this job or we see
  // the sleeper.
  state_.store(job_ << kCountBits | static_cast<std::uint64_t>(tasks));
  if (sleepers_.load() > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  work(0);
  const auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  // A worker that was put aside inside a task may need this very processor.
  while (!spin(kFinishSpin, finished)) std::this_thread::yield();
}

void Team::work(int worker) {
  std::uint64_t state = state_.load(std::memory_order_acquire);
  while ((state & kCountMask) != 0) {
    const auto left = static_cast<std::int64_t>(state & kCountMask);
    const TaskFunction function = function_.load(std::memory_order_relaxed);
    void* context = context_.load(std::memory_order_relaxed);
    const std::int64_t begin = tasks_.load(std::memory_order_relaxed) - left;
    const std::int64_t taken = std::min(left, stretch_.load(std::memory_order_relaxed));
    if (!state_.compare_exchange_weak(state, state - static_cast<std::uint64_t>(taken),
                                      std::memory_order_acq_rel, std::memory_order_acquire)) {
      continue;
    }
    for (std::int64_t task = begin; task < begin + taken; ++task) function(context, task, worker);
    unfinished_.fetch_sub(taken, std::memory_order_acq_rel);
    state = state_.load(std::memory_order_acquire);
  }
}

void Team::wait_for_job(std::uint64_t seen) {
  const auto changed = [this, seen] {
    return (state_.load() >> kCountBits) != seen || stopped_.load();
  };
  if (spin(kIdleSpin, changed)) return;
  sleepers_.fetch_add(1);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, changed);
  }
  sleepers_.fetch_sub(1);
}

void Team::serve(int worker) {
  std::uint64_t seen = 0;
  while (!stopped_.load()) {
    seen = state_.load(std::memory_order_acquire) >> kCountBits;
    work(worker);
    wait_for_job(seen);
  }
}

void Team::stop() {
  stopped_.store(true);
  const std::lock_guard<std::mutex> lock(mutex_);
  wake_.notify_all();
}

}  // namespace flatstep::cpu
