// What this CPU and operating system offer, and the tiers that follow from it.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "freehold.h"

namespace freehold {

// Name and presence of each feature the tiers ask for, operating system support included.
std::vector<std::pair<std::string, bool>> cpu_features();

// The tier of that name; throws std::invalid_argument when it is unknown or this machine can't run it.
// "amx" asks the kernel, once per process, for permission to use tile data.
const Tier& tier_by_name(const std::string& name);

// Limits, measured now. Bytes per second read by `threads` threads over `bytes` of memory (best of `repeats`).
double read_bandwidth(size_t bytes, int threads, int repeats);
// int8 multiply-adds times two per second that the tier's dot product instruction reaches from registers.
double int8_peak(const std::string& tier, int threads, double seconds);

}  // namespace freehold
