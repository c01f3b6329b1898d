#include "team.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>

namespace freehold {

namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 2000;  // about 50 us: longer than a layer's imbalance, shorter than a time slice
constexpr auto kLinger = std::chrono::milliseconds(2);  // between steps members stay awake so long

double processor_seconds() {
  timespec spent{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
  return static_cast<double>(spent.tv_sec) + 1e-9 * static_cast<double>(spent.tv_nsec);
}

}  // namespace

Team::Team(int size) : size_(size < 1 ? 1 : size), active_(size_), lost_(size_) {
  for (int member = 1; member < size_; ++member) threads_.emplace_back([this, member] { serve(member); });
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& work, bool brief) {
  began_ = Crowd::Clock::now();
  active_ = brief && crowd_.alone(began_) ? 1 : size_;
  if (active_ == 1) {
    alone_ += size_ > 1;
    work(0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  work_on(0);
  const auto now = Crowd::Clock::now();
  if (brief) crowd_.note(now, std::chrono::duration<double>(now - began_).count(), *std::max_element(lost_.begin(), lost_.end()));
}

void Team::work_on(int member) {
  const double processor = processor_seconds();
  (*work_)(member);
  // Late starts count too: from the beginning of the run, less what this thread got of a processor.
  lost_[member] = std::chrono::duration<double>(Crowd::Clock::now() - began_).count() - (processor_seconds() - processor);
  barrier();
}

void Team::barrier() {
  if (active_ == 1) return;
  const unsigned phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == active_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase;)
    if (++spins < kSpins)
      pause();
    else
      sched_yield();
}

void Team::serve(int member) {
  unsigned seen = 0;
  while (true) {
    const auto deadline = std::chrono::steady_clock::now() + kLinger;
    for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < kSpins) {
        pause();
        continue;
      }
      sched_yield();
      if (std::chrono::steady_clock::now() < deadline) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    work_on(member);
  }
}

}  // namespace freehold
