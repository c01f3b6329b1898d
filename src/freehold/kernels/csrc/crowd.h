// Whether other programs take the processors away from a team, so that one thread gets on faster than several.
//
// A short step has hundreds of meetings, and each waits for the member that lost its processor: on a machine where eight
// programs want two processors, two threads came to 4 tokens/s where one comes to 60 (docs/log.md). Knows no threads.
#pragma once
#include <algorithm>
#include <chrono>

namespace freehold {

class Crowd {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether the next short run should be the caller's alone.
  bool alone(Clock::time_point now) const { return now < until_; }

  // Takes a run by all members into account.
  //   wall: its seconds; lost: those that its unluckiest member wanted a processor and had none.
  void note(Clock::time_point now, double wall, double lost) {
    const double share = wall > 0 ? std::min(1.0, lost / wall) : 0;
    const bool trial = pause_ > Clock::duration::zero();  // the first run by all after a while alone
    lost_ = trial ? share : lost_ + kWeight * (share - lost_);
    if (lost_ < (trial ? kQuiet : kCrowded)) {
      pause_ = Clock::duration::zero();
      return;
    }
    pause_ = trial ? std::min<Clock::duration>(2 * pause_, kLongest) : kShortest;
    until_ = now + pause_;
  }

 private:
  static constexpr double kWeight = 0.2, kCrowded = 0.3, kQuiet = 0.2;
  static constexpr Clock::duration kShortest = std::chrono::milliseconds(250), kLongest = std::chrono::seconds(4);

  double lost_ = 0;  // moving average of the share of a run that was lost
  Clock::duration pause_{};
  Clock::time_point until_{};
};

}  // namespace freehold
