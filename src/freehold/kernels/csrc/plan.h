// Where the members of a team must meet. Knows resources by number and what is done to them; no operations, no threads.
#pragma once
#include <vector>

namespace freehold {

// What a stage does to a resource (a buffer, the KV cache, the quantized activations).
struct Touch {
  int resource;
  bool write;
  bool whole;  // any member touches any row of it; else each member touches its own rows only, always the same ones
};

// For each stage, whether the team must meet before it: what it touches was written (or what it writes was read) since the
// last meeting by members that may be others.
inline std::vector<bool> meetings(const std::vector<std::vector<Touch>>& stages, int resources) {
  struct Since { bool written_whole = false, written_own = false, read_whole = false, read_own = false; };
  std::vector<Since> since(resources);
  std::vector<bool> result;
  for (const auto& touches : stages) {
    bool meet = false;
    for (const Touch& t : touches) {
      const Since& s = since[t.resource];
      meet |= s.written_whole || (t.whole && s.written_own);
      if (t.write) meet |= s.read_whole || (t.whole && s.read_own);
    }
    if (meet) since.assign(resources, {});
    for (const Touch& t : touches) {
      Since& s = since[t.resource];
      (t.write ? (t.whole ? s.written_whole : s.written_own) : (t.whole ? s.read_whole : s.read_own)) = true;
    }
    result.push_back(meet);
  }
  return result;
}

}  // namespace freehold
