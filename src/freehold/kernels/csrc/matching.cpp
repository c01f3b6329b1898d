#include "matching.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace freehold {

namespace {

// Equal bytes at the beginning of a and b, of which `size` can be read.
size_t common_prefix(const uint8_t* a, const uint8_t* b, size_t size) {
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t x, y;
    std::memcpy(&x, a + i, 8);
    std::memcpy(&y, b + i, 8);
    if (x != y) break;
  }
  while (i < size && a[i] == b[i]) ++i;
  return i;
}

class Search {
 public:
  Search(const IndexedText& text, const uint8_t* query, size_t size, size_t minimum)
      : text_(text), query_(query), size_(size), minimum_(minimum), window_((minimum + 1) / 2), present_(size / window_ + 2, -1) {}

  std::vector<Match> run() {
    std::vector<Match> found;
    size_t covered = 0;
    for (size_t i = candidate(0); i + minimum_ <= size_;) {
      const size_t length = longest(i, size_ - i), end = i + length;
      if (length >= minimum_ && end > covered) {
        found.push_back(match(i, length));
        covered = end;
      }
      if (end == size_) break;
      i = candidate(length >= minimum_ ? leave(i, end) : i + 1);
    }
    return found;
  }

 private:
  const uint8_t* suffix(size_t index, size_t& size) const {
    const size_t at = text_.suffixes[index];
    if (at >= text_.size) throw std::invalid_argument("the suffix array points outside its text");
    size = text_.size - at;
    return text_.bytes + at;
  }

  // The first of the suffixes in [low, high) that is not before the pattern or, if `past`, not one that begins with it either.
  // Manber and Myers (1993): what both bounds share with the pattern need not be compared again.
  size_t bound(const uint8_t* pattern, size_t length, size_t low, size_t high, bool past, size_t& best) const {
    size_t shared_low = 0, shared_high = 0;
    best = 0;
    while (low < high) {
      const size_t middle = low + (high - low) / 2;
      size_t size, shared = std::min(shared_low, shared_high);
      const uint8_t* bytes = suffix(middle, size);
      size = std::min(size, length);
      shared = std::min(shared, size);
      shared += common_prefix(bytes + shared, pattern + shared, size - shared);
      best = std::max(best, shared);
      const bool before = shared == length ? past : shared == size || bytes[shared] < pattern[shared];
      if (before) {
        low = middle + 1;
        shared_low = shared;
      } else {
        high = middle;
        shared_high = shared;
      }
    }
    return low;
  }

  // How many bytes of query[start, start + limit) the text has somewhere: the suffixes next to it in the order share most.
  size_t longest(size_t start, size_t limit) const {
    size_t best;
    bound(query_ + start, limit, 0, text_.size, false, best);
    return best;
  }

  Match match(size_t start, size_t length) const {
    size_t best;
    const size_t low = bound(query_ + start, length, 0, text_.size, false, best);
    const size_t high = bound(query_ + start, length, low, text_.size, true, best);
    return {static_cast<uint32_t>(start), static_cast<uint32_t>(length), static_cast<uint32_t>(low), static_cast<uint32_t>(high)};
  }

  // The first position from `start` on that may begin a match. A match of `minimum` bytes holds a whole window of half as
  // many, aligned in the query: where the text lacks the window, no match begins before it.
  size_t candidate(size_t start) {
    while (start + minimum_ <= size_) {
      const size_t window = (start + window_ - 1) / window_;
      if (present_[window] < 0) present_[window] = longest(window * window_, window_) == window_;
      if (present_[window]) return start;
      start = window * window_ + 1;
    }
    return size_;
  }

  // The first position after `start` from which the text has more than up to `end`. Ends never move backwards, so steps
  // may double and then halve: a long match costs the logarithm of its length.
  size_t leave(size_t start, size_t end) const {
    auto beyond = [&](size_t at) { return at >= end || at + longest(at, std::min(end + 1, size_) - at) > end; };
    size_t inside = start, step = 1;
    while (!beyond(inside + step)) {
      inside += step;
      step *= 2;
    }
    size_t outside = inside + step;
    while (outside - inside > 1) {
      const size_t middle = inside + (outside - inside) / 2;
      (beyond(middle) ? outside : inside) = middle;
    }
    return outside;
  }

  const IndexedText& text_;
  const uint8_t* query_;
  const size_t size_, minimum_, window_;
  std::vector<signed char> present_;  // -1: not looked up yet
};

}  // namespace

std::vector<Match> maximal_matches(const IndexedText& text, const uint8_t* query, size_t size, size_t minimum) {
  if (minimum < 1) throw std::invalid_argument("minimum must be at least 1");
  if (text.size > UINT32_MAX || size > UINT32_MAX) throw std::invalid_argument("text and query must be shorter than 2^32");
  return Search(text, query, size, minimum).run();
}

}  // namespace freehold
