#include "pool.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace secateurs {
namespace {

// A whole network calls every few microseconds: between two layers waking a sleeping thread would cost more than the spin.
constexpr auto kSpin = std::chrono::microseconds(100);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

class Pool {
 public:
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      ++generation_;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  std::mutex busy;

  void run(int threads, void (*task)(void*, int), void* context) {
    while (static_cast<int>(workers_.size()) < threads - 1) {
      const int index = static_cast<int>(workers_.size()) + 1;
      const uint64_t seen = generation_.load();
      workers_.emplace_back([this, index, seen] { work(index, seen); });
    }
    task_ = task;
    context_ = context;
    threads_ = threads;
    pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (asleep_.load() > 0) wake_.notify_all();
    task(context, 0);
    while (pending_.load(std::memory_order_acquire) > 0) relax();
  }

 private:
  void work(int index, uint64_t seen) {
    for (;;) {
      wait(seen);
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      if (index < threads_) task_(context_, index);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (std::chrono::steady_clock::now() < until) {
      for (int i = 0; i < 32; ++i) {
        if (generation_.load(std::memory_order_acquire) != seen) return;
        relax();
      }
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    --asleep_;
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> pending_{0}, asleep_{0};
  bool stop_ = false;
  int threads_ = 0;
  void (*task_)(void*, int) = nullptr;
  void* context_ = nullptr;
};

std::mutex pool_mutex;
std::unique_ptr<Pool> the_pool;
long pool_process = 0;

// After a fork the pool's threads are gone, and waiting for them would never end: the husk stays as it is.
void leave_husk() {
  if (the_pool && pool_process != process_id()) the_pool.release();
}

// Destroyed before the pool, so that a forked process that never calls ends as well.
struct AtExit {
  ~AtExit() { leave_husk(); }
} at_exit;

Pool& pool() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  leave_husk();
  if (!the_pool) {
    the_pool.reset(new Pool);
    pool_process = process_id();
  }
  return *the_pool;
}

uint64_t range(uint64_t begin, uint64_t end) { return begin | (end << 32); }

}  // namespace

void run_parallel(int threads, void (*task)(void*, int), void* context) {
  if (threads > 1) {
    Pool& workers = pool();
    std::unique_lock<std::mutex> mine(workers.busy, std::try_to_lock);
    if (mine.owns_lock()) {
      workers.run(threads, task, context);
      return;
    }
  }
  for (int i = 0; i < threads; ++i) task(context, i);
}

Shares::Shares(const std::vector<double>& cumulative_cost, int threads) : shares_(static_cast<size_t>(threads)) {
  const double total = cumulative_cost.empty() ? 0.0 : cumulative_cost.back();
  size_t begin = 0;
  for (int t = 0; t < threads; ++t) {
    const double until = total * (t + 1) / threads;
    size_t end = begin;
    // An item belongs to the thread in whose share its middle lies.
    while (end < cumulative_cost.size()) {
      const double before = end ? cumulative_cost[end - 1] : 0.0;
      if (t + 1 < threads && 0.5 * (before + cumulative_cost[end]) > until) break;
      ++end;
    }
    shares_[static_cast<size_t>(t)].range.store(range(begin, end), std::memory_order_relaxed);
    begin = end;
  }
}

int Shares::next(int thread) {
  const int threads = static_cast<int>(shares_.size());
  for (int k = 0; k < threads; ++k) {
    std::atomic<uint64_t>& share = shares_[static_cast<size_t>((thread + k) % threads)].range;
    uint64_t seen = share.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t begin = seen & 0xffffffffu, end = seen >> 32;
      if (begin >= end) break;
      const bool mine = k == 0;
      const uint64_t left = mine ? range(begin + 1, end) : range(begin, end - 1);
      if (share.compare_exchange_weak(seen, left, std::memory_order_relaxed)) return static_cast<int>(mine ? begin : end - 1);
    }
  }
  return -1;
}

}  // namespace secateurs
