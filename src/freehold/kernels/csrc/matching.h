// Where pieces of a query stand in a text, by the text's suffix array.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace freehold {

// suffixes [size]: where the text's suffixes begin, in their order as bytes. The text may be a mapped file, so what is read
// from it is checked: std::invalid_argument when an entry lies outside the text.
struct IndexedText {
  const uint8_t* bytes;
  const uint32_t* suffixes;
  size_t size;
};

// query[start, start + length) stands in the text at suffixes[low .. high - 1], and is part of no longer match.
struct Match {
  uint32_t start, length, low, high;
};

// All matches of at least `minimum` bytes that no other contains, by their start. Deterministic; reads O(log size) entries
// for each position of the query that may begin one.
std::vector<Match> maximal_matches(const IndexedText& text, const uint8_t* query, size_t size, size_t minimum);

}  // namespace freehold
