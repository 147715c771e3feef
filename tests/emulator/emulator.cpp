#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>

#include "block.h"
#include "cuda_runtime.h"
#include "fiber.h"
#include "memory.h"
#include "races.h"
#include "ready.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kMostThreads = 1024, kLargestCluster = 16;
constexpr std::size_t kCopyBytes = 16;

struct OrderSetting {
  Order order;
  std::uint64_t seed;
  Random random;
};

OrderSetting setting_of(Order order, std::uint64_t seed) { return {order, seed, Random(seed)}; }

OrderSetting setting_from_environment() {
  const char* variable = std::getenv("FLATSTEP_EMULATOR_ORDER");
  const std::string text = variable != nullptr ? variable : "forward";
  if (text == "forward") return setting_of(Order::forward, 0);
  if (text == "reverse") return setting_of(Order::reverse, 0);
  char* end = nullptr;
  if (text.rfind("random:", 0) == 0 && text.size() > 7) {
    const std::uint64_t seed = std::strtoull(text.c_str() + 7, &end, 10);
    if (*end == '\0') return setting_of(Order::random, seed);
  }
  throw std::runtime_error("FLATSTEP_EMULATOR_ORDER: got '" + text +
                           "', expected forward, reverse or random:SEED");
}

OrderSetting& setting() {
  static OrderSetting value = setting_from_environment();
  return value;
}

// The launch that runs; the functions that kernels call find it here.
struct Launch {
  Cluster& cluster;
  const Shape& shape;
  const std::function<void()>& body;
  Thread* current = nullptr;
  std::string failure;
  Races races;
  bool atomic = false;
};
bool watching = false;  // for races

std::mutex launching;
Launch* active = nullptr;
std::size_t launch_count = 0;
std::vector<Fiber> fibers;

Launch& active_launch() {
  if (active == nullptr || active->current == nullptr) {
    throw Failure("a device function is called outside of a kernel");
  }
  return *active;
}

void check_shape(const Shape& shape) {
  const auto refuse = [](const std::string& what, std::size_t got, const std::string& expected) {
    throw Failure("launch: " + what + " is " + std::to_string(got) + ", expected " + expected);
  };
  if (shape.block < 1 || shape.block > kMostThreads) refuse("block", shape.block, "1 to 1024");
  if (shape.cluster < 1 || shape.cluster > kLargestCluster) {
    refuse("cluster", shape.cluster, "1 to 16");
  }
  if (shape.grid % shape.cluster != 0 || shape.grid > 0x7fffffffu) {
    refuse("grid", shape.grid, "a multiple of the cluster below 2^31");
  }
  if (shape.shared_bytes > kSharedBytesOfBlock) {
    refuse("shared_bytes", shape.shared_bytes, "at most " + std::to_string(kSharedBytesOfBlock));
  }
}

// Leaves a kernel that has failed; its other threads are not gone on with.
struct Leave {};

void thread_body() {
  try {
    active->body();
  } catch (const Leave&) {
  }
}

void resume(Launch& launch, Thread& thread, Fiber& fiber) {
  launch.current = &thread;
  threadIdx.x = thread.number;
  blockIdx.x = thread.block->number;
  fiber.resume();
  launch.current = nullptr;
}

void run_cluster(Launch& launch, ReadyThreads& ready, unsigned first_block) {
  Cluster& cluster = launch.cluster;
  cluster.begin(first_block);
  launch.races.begin_cluster();
  for (unsigned i = 0; i < cluster.size(); ++i) fibers[i].start(thread_body);
  while (!ready.empty()) {
    const unsigned index = ready.take();
    Thread& thread = cluster.thread(index);
    resume(launch, thread, fibers[index]);
    if (launch.failure.empty() && fibers[index].finished()) {
      launch.failure = cluster.at_end(thread);
      if (!launch.failure.empty()) launch.failure = name_of(thread) + " " + launch.failure;
    }
    if (!launch.failure.empty()) break;
  }
  if (launch.failure.empty() && !cluster.all_ended()) {
    launch.failure = "no thread can go on: " + cluster.describe_waiting();
  }
  if (!launch.failure.empty()) {
    throw Failure("emulated kernel, order " + order_name() + ": " + launch.failure);
  }
}

// The current thread has come to where it may have to wait: it goes on when its turn comes.
void wait_for_turn(const std::string& error) {
  if (!error.empty()) fail(error);
  Fiber::suspend();
}

}  // namespace

void set_order(Order order, std::uint64_t seed) { setting() = setting_of(order, seed); }

std::string order_name() {
  const OrderSetting& now = setting();
  return now.order == Order::forward   ? "forward"
         : now.order == Order::reverse ? "reverse"
                                       : "random:" + std::to_string(now.seed);
}

void for_each_order(int seeds, const std::function<void()>& visit) {
  struct Restore {
    OrderSetting before = setting();
    ~Restore() { setting() = before; }
  } const restore;
  set_order(Order::forward);
  visit();
  if (watching && seeds == 0) return;
  set_order(Order::reverse);
  visit();
  for (int seed = 1; seed <= seeds; ++seed) {
    set_order(Order::random, static_cast<std::uint64_t>(seed));
    visit();
  }
}

std::size_t launches() { return launch_count; }

void run(const Shape& shape, const std::function<void()>& thread) {
  check_shape(shape);
  const std::lock_guard<std::mutex> lock(launching);
  ++launch_count;
  OrderSetting& order = setting();
  ReadyThreads ready(order.order, order.random);
  Cluster cluster(shape, ready);
  if (fibers.size() < cluster.size()) fibers.resize(cluster.size());

  std::vector<unsigned> clusters(shape.grid / shape.cluster);
  std::iota(clusters.begin(), clusters.end(), 0u);
  if (order.order == Order::reverse) std::reverse(clusters.begin(), clusters.end());
  if (order.order == Order::random) {
    for (auto left = static_cast<unsigned>(clusters.size()); left > 1; --left) {
      std::swap(clusters[left - 1], clusters[order.random.below(left)]);
    }
  }

  const DeviceMemoryInUse in_use;
  Launch launch{cluster, shape, thread};
  struct Active {
    explicit Active(Launch& launch) { active = &launch; }
    ~Active() { active = nullptr; }
  } const now(launch);
  blockDim = dim3(shape.block);
  gridDim = dim3(shape.grid);
  for (unsigned each : clusters) run_cluster(launch, ready, each * shape.cluster);
}

void fail(const std::string& text) {
  Launch& launch = active_launch();
  launch.failure = name_of(*launch.current) + ": " + text;
  throw Leave();
}

void* shared_memory(std::size_t bytes) {
  Launch& launch = active_launch();
  if (bytes > launch.shape.shared_bytes) {
    fail("shared memory of " + std::to_string(bytes) + " bytes is used, the launch has " +
         std::to_string(launch.shape.shared_bytes));
  }
  return launch.current->block->shared.get();
}

void block_barrier(Site site) {
  Launch& launch = active_launch();
  launch.current->site = site;
  wait_for_turn(launch.cluster.at_block_barrier(*launch.current));
}

void cluster_barrier(Site site) {
  Launch& launch = active_launch();
  if (launch.shape.cluster == 1) return block_barrier(site);
  launch.current->site = site;
  wait_for_turn(launch.cluster.at_cluster_barrier(*launch.current));
}

std::uint64_t exchange(Exchange kind, unsigned mask, std::uint64_t value, int source, Site site) {
  Launch& launch = active_launch();
  Thread& thread = *launch.current;
  thread.site = site;
  thread.kind = kind;
  thread.mask = mask;
  thread.value = value;
  thread.source = source;
  wait_for_turn(launch.cluster.in_exchange(thread));
  return thread.value;
}

void yield() {
  Launch& launch = active_launch();
  if (setting().order != Order::random) return;
  launch.cluster.yield(*launch.current);
  Fiber::suspend();
}

void watch_races() { watching = true; }

void note_access(const void* address, std::size_t bytes, bool is_write, const void* place) {
  static bool inside = false;  // of containers here, whose code may be shared with the kernels'
  if (!watching || inside || active == nullptr || active->current == nullptr) return;
  if (Fiber::on_stack(address)) return;
  inside = true;
  Launch& launch = *active;
  const AccessKind kind = launch.atomic ? AccessKind::atomic
                          : is_write    ? AccessKind::write
                                        : AccessKind::read;
  const std::string error =
      launch.races.at_access(launch.cluster, *launch.current, address, bytes, kind, place);
  // The thread goes on to where it waits next: sanitized code cannot be left from here.
  if (!error.empty() && launch.failure.empty()) {
    launch.failure = name_of(*launch.current) + ": " + error;
  }
  inside = false;
}

Atomic::Atomic() { active_launch().atomic = true; }
Atomic::~Atomic() { active_launch().atomic = false; }

void copy_async(void* shared, const void* global) {
  Launch& launch = active_launch();
  Thread& thread = *launch.current;
  const auto* start = thread.block->shared.get();
  const auto* place = static_cast<const unsigned char*>(shared);
  if (place < start || place + kCopyBytes > start + launch.shape.shared_bytes) {
    fail("copy_async: the destination is not in shared memory");
  }
  if (reinterpret_cast<std::uintptr_t>(shared) % kCopyBytes != 0 ||
      reinterpret_cast<std::uintptr_t>(global) % kCopyBytes != 0) {
    fail("copy_async: an address is not aligned to 16 bytes");
  }
  note_access(shared, kCopyBytes, true, __builtin_return_address(0));
  note_access(global, kCopyBytes, false, __builtin_return_address(0));
  thread.copies.emplace_back(shared, global);
}

void wait_for_copies() {
  Thread& thread = *active_launch().current;
  for (const auto& [to, from] : thread.copies) {
    note_access(to, kCopyBytes, true, __builtin_return_address(0));
    note_access(from, kCopyBytes, false, __builtin_return_address(0));
    std::memcpy(to, from, kCopyBytes);
  }
  thread.copies.clear();
}

int cluster_rank() {
  Launch& launch = active_launch();
  return static_cast<int>(launch.current->block->number % launch.shape.cluster);
}

int cluster_size() { return static_cast<int>(active_launch().shape.cluster); }

const void* cluster_address(const void* mine, std::size_t bytes, int rank, Site site) {
  Launch& launch = active_launch();
  const Thread& thread = *launch.current;
  const std::string name = "cluster_read at " + text_of(site) + ": ";
  const auto* start = thread.block->shared.get();
  const auto* place = static_cast<const unsigned char*>(mine);
  if (place < start || place + bytes > start + launch.shape.shared_bytes) {
    fail(name + "the variable is not in shared memory");
  }
  if (rank < 0 || rank >= cluster_size()) {
    fail(name + "rank is " + std::to_string(rank) + ", the cluster has " +
         std::to_string(cluster_size()) + " blocks");
  }
  Block& block = launch.cluster.block(static_cast<unsigned>(rank));
  if (&block != thread.block && block.ended > 0) {
    fail(name + "block " + std::to_string(block.number) +
         " has ended, no cluster_sync after cluster_read");
  }
  if (&block != thread.block) block.reader = &thread;
  return block.shared.get() + (place - start);
}

}  // namespace emulator
