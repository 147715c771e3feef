// The threads of a team under ThreadSanitizer. They are std::threads here: the sanitizer does not
// know the barriers of libgomp. With an argument, a race is planted, which must be reported.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu/team.h"

namespace {

void run(int workers, bool plant_race) {
  flatstep::cpu::Team team(workers);
  std::vector<std::thread> threads;
  for (int worker = 1; worker < workers; ++worker) {
    threads.emplace_back([&team, worker] { team.serve(worker); });
  }
  std::vector<long> values(1000);
  for (int round = 1; round <= 300; ++round) {
    const std::int64_t tasks = 1 + round * 7 % 1000;
    struct Context {
      std::vector<long>& values;
      long shared;
      bool plant_race;
      bool meet;  // a race takes two: on a busy machine one thread may do all tasks of a round
      std::atomic<unsigned> seen;
    } context{values, 0, plant_race, plant_race && workers > 1 && tasks >= 2 * workers, {0}};
    team.run(
        tasks,
        [](void* data, std::int64_t task, int worker) {
          auto& c = *static_cast<Context*>(data);
          if (c.meet) {  // relaxed, so that it puts nothing in order
            const unsigned self = 1u << worker;
            c.seen.fetch_or(self, std::memory_order_relaxed);
            while (c.seen.load(std::memory_order_relaxed) == self) std::this_thread::yield();
          }
          ++c.values[static_cast<std::size_t>(
              task)];  // plain memory: only a team's order guards it
          if (c.plant_race) ++c.shared;
        },
        &context,
        round % 2 == 0 ? flatstep::cpu::Order::forwards : flatstep::cpu::Order::backwards);
    // A pause makes some workers fall asleep, so that waking them is tested too.
    if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  team.stop();
  for (std::thread& thread : threads) thread.join();
  long total = 0, expected = 0;
  for (long value : values) total += value;
  for (int round = 1; round <= 300; ++round) expected += 1 + round * 7 % 1000;
  if (total != expected) {
    std::printf("%ld tasks ran, expected %ld\n", total, expected);
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char**) {
  for (const int workers : {1, 2, 3, 7}) run(workers, argc > 1);
  return 0;
}
