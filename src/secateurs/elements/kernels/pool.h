// A few worker threads that wait for the next convolution, and a split of its items that lets idle threads steal.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

namespace secateurs {

// Runs task(context, thread) for thread 0 .. threads-1, thread 0 on the caller. Where the pool is busy with another
// caller's work, all of it runs on the caller.
void run_parallel(int threads, void (*task)(void* context, int thread), void* context);

// Items 0 .. count-1 with a cost each, cut into one run of equal cost per thread. Neighbouring items share scratch
// contents, so a thread takes its own from the front and steals from the end of the others'.
class Shares {
 public:
  Shares(const std::vector<double>& cumulative_cost, int threads);
  // The next item for this thread, or -1.
  int next(int thread);

 private:
  struct alignas(64) Share {
    std::atomic<uint64_t> range{0};  // begin in the low half, end in the high half
  };
  std::vector<Share> shares_;
};

}  // namespace secateurs
