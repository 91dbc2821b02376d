// A cache from words to their ids, laid out so that a look-up costs one cache line of the processor.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "utf8.h"

namespace {

constexpr uint64_t kHashFactor = 0x9E3779B97F4A7C15;

// Word -> ids, for words of up to kBytes bytes; two entries a slot, the older one is overwritten.
template <class Id, size_t kBytes>
class WordCache {
 public:
  static constexpr size_t kWords = kBytes / 8;
  static constexpr size_t kIds = (kBytes * sizeof(Id) - kBytes - 2) / sizeof(Id);

  struct alignas(kBytes * sizeof(Id)) Entry {  // one cache line or half of one
    std::array<uint64_t, kWords> key{};
    std::array<Id, kIds> ids{};
    uint8_t num_ids = 0, size = 0;  // no word has size 0: an empty entry equals none

    bool holds(const std::array<uint64_t, kWords>& wanted, size_t wanted_size) const {
      uint64_t difference = size ^ wanted_size;  // the size too: the word NUL has an empty entry's key
      for (size_t i = 0; i < kWords; ++i) difference |= key[i] ^ wanted[i];
      return !difference;
    }
  };

  struct Place {
    std::array<uint64_t, kWords> key;
    Entry* slot;
  };

  explicit WordCache(unsigned bits) : entries_(size_t(2) << bits), shift_(64 - bits) {
    window_.fill(0);
    std::fill_n(window_.begin(), kBytes, 0xFF);
  }

  // Key and slot of a word, which the processor begins to fetch: look at the slots of some other words meanwhile.
  Place locate(const uint8_t* word, size_t size) {
    Place place;
    uint64_t hash = size;
    for (size_t i = 0; i < kWords; ++i) {
      // The window slides so that only the word's own bytes stay.
      place.key[i] = load64(word + 8 * i) & load64(window_.data() + kBytes - size + 8 * i);
      hash = (hash ^ place.key[i]) * kHashFactor;
      hash ^= hash >> 32;
    }
    place.slot = &entries_[hash * 0xD6E8FEB86659FD93 >> shift_ << 1];
    __builtin_prefetch(place.slot);
    return place;
  }

  // Write the ids of a word; `merge` finds those that the cache lacks. Moves whole entries: see kPadding.
  template <class MergeWord>
  Id* encode(const Place& place, size_t size, Id* out, MergeWord merge) {
    for (const Entry* entry : {place.slot, place.slot + 1})
      if (entry->holds(place.key, size)) {
        std::memcpy(out, entry->ids.data(), sizeof entry->ids);
        return out + entry->num_ids;
      }
    Id* const end = merge(out);
    if (const size_t count = size_t(end - out); count <= kIds) {
      place.slot[1] = place.slot[0];
      place.slot[0].key = place.key;
      std::copy(out, end, place.slot[0].ids.begin());
      place.slot[0].num_ids = uint8_t(count);
      place.slot[0].size = uint8_t(size);
    }
    return end;
  }

 private:
  std::vector<Entry> entries_;
  unsigned shift_;
  std::array<uint8_t, 2 * kBytes> window_;
};

}  // namespace
