// Threads that share the parts of one call.

#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace kernel_threads {

// Workers wait awake for a moment before they sleep: to wake one takes longer than a small call, above all on a
// virtual machine.
constexpr int AWAKE = 20000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One call at a time has the workers; others that come meanwhile compute alone. A worker that wakes too late finds the
// call closed, and nobody waits for it.
class Pool {
 public:
  void run(int64_t threads, const std::function<void()>& part) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (threads < 2 || !mine.owns_lock()) return part();
    grow(threads - 1);
    part_ = &part;
    inside_.store(0);
    {
      std::lock_guard<std::mutex> lock(sleep_);
      wanted_ = threads - 1;
      call_.fetch_add(1);
    }
    wake_.notify_all();
    part();
    inside_.fetch_add(CLOSED);
    for (int i = 0; inside_.load() != CLOSED; i++) i < AWAKE ? pause() : std::this_thread::yield();
  }

 private:
  static constexpr int64_t CLOSED = INT64_MIN / 2;

  void grow(int64_t workers) {
    for (; workers_ < workers; workers_++) {
      try {
        std::thread([this, number = workers_] { work(number); }).detach();
      } catch (...) {
        return;  // as many as the system gives
      }
    }
  }

  bool enter() {
    int64_t inside = inside_.load();
    while (inside >= 0)
      if (inside_.compare_exchange_weak(inside, inside + 1)) return true;
    return false;
  }

  void work(int64_t number) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < AWAKE && call_.load() == seen; i++) pause();
      if (call_.load() == seen) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, [&] { return call_.load() != seen; });
      }
      seen = call_.load();
      if (number >= wanted_.load() || !enter()) continue;
      (*part_)();
      inside_.fetch_sub(1);
    }
  }

  std::mutex busy_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> call_{0};
  std::atomic<int64_t> wanted_{0};
  std::atomic<int64_t> inside_{CLOSED};  // workers in the call that is open
  const std::function<void()>* part_ = nullptr;
  int64_t workers_ = 0;
};

// Never destroyed: workers may wait for it when the program ends. A forked process has no workers, so it begins anew.
inline Pool* pool = new Pool;
inline const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

// body(next) on up to `threads` threads, which each ask next() for a part of 0 ... count - 1 until there is none (-1).
template <typename Body>
void share(int64_t count, int64_t threads, Body body) {
  std::atomic<int64_t> at{0};
  auto next = [&] {
    int64_t part = at.fetch_add(1);
    return part < count ? part : -1;
  };
  pool->run(threads < count ? threads : count, [&] { body(next); });
}

}  // namespace kernel_threads
