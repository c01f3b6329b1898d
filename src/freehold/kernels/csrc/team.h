// A persistent team of threads that run one function together and meet at barriers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "crowd.h"

namespace freehold {

class Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  int capacity() const { return size_; }
  // Members at work now: all, or the caller alone (see `crowd.h`). Only inside `run`.
  int size() const { return active_; }
  // Runs work(member) on every member, the caller being member 0; returns when all have finished. `brief`: so little work that
  // it may be better done by the caller alone, when other programs want the processors too.
  void run(const std::function<void(int)>& work, bool brief = false);
  // Runs that the caller did alone.
  uint64_t alone() const { return alone_; }
  // Inside `run`: waits until every member has arrived.
  void barrier();

 private:
  void serve(int member);

  void work_on(int member);

  int size_, active_;
  Crowd crowd_;
  uint64_t alone_ = 0;
  Crowd::Clock::time_point began_{};
  std::vector<double> lost_;  // by member: seconds of the last run without a processor
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> phase_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace freehold
