// The threads that can go on, and which of them is next.
#pragma once

#include <cstdint>
#include <vector>

#include "emulator.h"

namespace emulator {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {  // splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  unsigned below(unsigned bound) { return static_cast<unsigned>((next() >> 32) * bound >> 32); }

 private:
  std::uint64_t state_;
};

// In forward order the lowest thread goes on, in reverse order the highest: of two threads between
// the same barriers, one order runs the first wholly before the second, the other order after it.
class ReadyThreads {
 public:
  ReadyThreads(Order order, Random& random) : order_(order), random_(random) {}

  void reset(unsigned threads) {
    threads_ = threads;
    count_ = 0;
    list_.clear();
    words_.assign((threads + 63) / 64, 0);
    lowest_ = static_cast<unsigned>(words_.size());
  }

  bool empty() const { return count_ == 0; }

  void add(unsigned thread) {
    ++count_;
    if (order_ == Order::random) {
      list_.push_back(thread);
      return;
    }
    const unsigned place = place_of(thread);
    words_[place / 64] |= std::uint64_t{1} << place % 64;
    if (place / 64 < lowest_) lowest_ = place / 64;
  }

  unsigned take() {
    --count_;
    if (order_ == Order::random) {
      std::swap(list_[random_.below(static_cast<unsigned>(list_.size()))], list_.back());
      const unsigned thread = list_.back();
      list_.pop_back();
      return thread;
    }
    while (words_[lowest_] == 0) ++lowest_;
    std::uint64_t& word = words_[lowest_];
    const auto bit = static_cast<unsigned>(__builtin_ctzll(word));
    word &= word - 1;
    return place_of(lowest_ * 64 + bit);
  }

 private:
  unsigned place_of(unsigned thread) const {
    return order_ == Order::reverse ? threads_ - 1 - thread : thread;
  }

  Order order_;
  Random& random_;
  unsigned threads_ = 0, count_ = 0, lowest_ = 0;
  std::vector<std::uint64_t> words_;
  std::vector<unsigned> list_;
};

}  // namespace emulator
