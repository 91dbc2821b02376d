// SentencePiece BPE over Arrow strings: the ids that the sentencepiece library gives, many times faster.
//
// Why it is fast. A merge joins two neighbours into a piece of the vocabulary. Where no piece holds byte a followed by
// byte b across two characters, no merge can ever reach over an "ab" in a text, so the text may be cut there and each
// part be encoded alone, with the same result. With the vocabularies this is meant for, the parts are words with their
// leading space; texts repeat their words, so a cache answers nearly all of them without merging anything.
//
// What the caller (encoder.py) has made sure of, and refuses otherwise: identity normalisation, byte fallback, no unused
// pieces, no piece that reaches from one word into the next, every character of a piece is a piece.
//
// Inside, one byte ' ' stands for SentencePiece's "▁" (U+2581), in texts and pieces alike.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

constexpr uint32_t kNoMerge = UINT32_MAX;
constexpr int32_t kUnknown = -1;
constexpr size_t kPadding = 64;  // readable bytes after a text, and ids after the output: both are moved in whole blocks

uint64_t load64(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// ---------------------------------------------------------------------------------------------------------- UTF-8

size_t length_by_first_byte(uint8_t first) { return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4; }

uint32_t decode_character(const uint8_t* s, size_t length) {
  switch (length) {
    case 1: return s[0];
    case 2: return (s[0] & 0x1Fu) << 6 | (s[1] & 0x3Fu);
    case 3: return (s[0] & 0x0Fu) << 12 | (s[1] & 0x3Fu) << 6 | (s[2] & 0x3Fu);
    default: return (s[0] & 0x07u) << 18 | (s[1] & 0x3Fu) << 12 | (s[2] & 0x3Fu) << 6 | (s[3] & 0x3Fu);
  }
}

// Bytes of the multi-byte character at s; 0 if it is not well-formed (Unicode 15, table 3-7).
size_t multibyte_length(const uint8_t* s, size_t available) {
  const size_t length = length_by_first_byte(s[0]);
  if (s[0] < 0xC2 || s[0] > 0xF4 || length > available) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((s[i] & 0xC0) != 0x80) return 0;
  const bool overlong = (s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xF0 && s[1] < 0x90);
  const bool surrogate = s[0] == 0xED && s[1] > 0x9F, too_large = s[0] == 0xF4 && s[1] > 0x8F;
  return overlong || surrogate || too_large ? 0 : length;
}

// Copies a text, "▁" as ' ', and checks that it is UTF-8. Returns the end of the copy.
uint8_t* normalise(const uint8_t* text, size_t size, uint8_t* out) {
  for (size_t i = 0; i < size;) {
    if (size - i >= 8 && !(load64(text + i) & 0x8080808080808080)) {
      std::memcpy(out, text + i, 8);
      i += 8, out += 8;
    } else if (text[i] < 0x80) {
      *out++ = text[i++];
    } else {
      const size_t length = multibyte_length(text + i, size - i);
      if (!length) throw std::invalid_argument("is not UTF-8 at its byte " + std::to_string(i));
      if (length == 3 && !std::memcmp(text + i, "\xE2\x96\x81", 3)) {
        *out++ = ' ';
      } else {
        std::memcpy(out, text + i, length);
        out += length;
      }
      i += length;
    }
  }
  return out;
}

// ----------------------------------------------------------------------------------------------------- vocabulary

struct Piece {
  std::string bytes;
  float score;
};

struct Merge {
  uint32_t rank = kNoMerge;  // lower is done first; pieces of equal score have equal rank
  int32_t id = kUnknown;
};

// (id, id) -> merge; open addressing, at most half full.
class MergeTable {
 public:
  explicit MergeTable(const std::vector<std::pair<uint64_t, Merge>>& merges) {
    size_t size = 16;
    while (size < 2 * merges.size()) size *= 2;
    entries_.resize(size, {UINT64_MAX, Merge{}});
    for (const auto& [key, merge] : merges) {
      size_t slot = first_slot(key);
      while (entries_[slot].first != UINT64_MAX) slot = (slot + 1) & (size - 1);
      entries_[slot] = {key, merge};
    }
  }

  static uint64_t key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

  Merge find(int32_t left, int32_t right) const {
    if (left == kUnknown || right == kUnknown) return {};
    const uint64_t wanted = key(left, right);
    for (size_t slot = first_slot(wanted);; slot = (slot + 1) & (entries_.size() - 1)) {
      if (entries_[slot].first == wanted) return entries_[slot].second;
      if (entries_[slot].first == UINT64_MAX) return {};
    }
  }

 private:
  size_t first_slot(uint64_t key) const { return (key * 0x9E3779B97F4A7C15) >> 32 & (entries_.size() - 1); }

  std::vector<std::pair<uint64_t, Merge>> entries_;
};

class Vocabulary {
 public:
  // pieces: id -> piece of the kind that merges make; symbols: user-defined pieces, which are cut out of texts first.
  Vocabulary(const std::unordered_map<int32_t, Piece>& pieces, const std::unordered_map<int32_t, std::string>& symbols,
             const std::array<int32_t, 256>& byte_ids)
      : byte_ids(byte_ids), character_ids_(0x110000, kUnknown), merges_(collect_merges(pieces)) {
    for (auto& row : is_cut_) row.fill(1);
    for (auto& row : is_cut_) std::fill(row.begin() + 0x80, row.begin() + 0xC0, 0);  // inside a character
    for (const auto& [id, piece] : pieces) add_characters(id, piece.bytes);
    for (const auto& [id, bytes] : symbols) symbols_[uint8_t(bytes[0])].emplace_back(bytes, id);
    for (auto& group : symbols_)
      std::sort(group.begin(), group.end(), [](auto& a, auto& b) { return a.first.size() > b.first.size(); });
    has_symbols = !symbols.empty();
  }

  const std::array<int32_t, 256> byte_ids;
  bool has_symbols;

  // 1 where a text may be cut between two bytes (see the top of this file).
  uint8_t is_cut(uint8_t before, uint8_t after) const { return is_cut_[before][after]; }

  int32_t character_id(const uint8_t* s, size_t length) const { return character_ids_[decode_character(s, length)]; }

  Merge merge(int32_t left, int32_t right) const { return merges_.find(left, right); }

  // The longest user-defined symbol at the start of a text, as SentencePiece takes them; null if there is none.
  const std::pair<std::string, int32_t>* symbol_at(const uint8_t* s, size_t available) const {
    for (const auto& symbol : symbols_[s[0]])
      if (symbol.first.size() <= available && !std::memcmp(s, symbol.first.data(), symbol.first.size())) return &symbol;
    return nullptr;
  }

 private:
  static bool is_inside_character(char byte) { return (byte & 0xC0) == 0x80; }

  static std::vector<std::pair<uint64_t, Merge>> collect_merges(const std::unordered_map<int32_t, Piece>& pieces) {
    std::unordered_map<std::string, int32_t> ids;
    std::vector<float> scores;
    for (const auto& [id, piece] : pieces) ids[piece.bytes] = id, scores.push_back(piece.score);
    std::sort(scores.rbegin(), scores.rend());
    std::vector<std::pair<uint64_t, Merge>> merges;
    for (const auto& [id, piece] : pieces) {
      const auto rank = std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<>()) - scores.begin();
      for (size_t cut = 1; cut < piece.bytes.size(); ++cut) {
        const auto left = ids.find(piece.bytes.substr(0, cut)), right = ids.find(piece.bytes.substr(cut));
        if (left != ids.end() && right != ids.end())
          merges.push_back({MergeTable::key(left->second, right->second), {uint32_t(rank), id}});
      }
    }
    return merges;
  }

  void add_characters(int32_t id, const std::string& bytes) {
    const auto* s = reinterpret_cast<const uint8_t*>(bytes.data());
    if (length_by_first_byte(s[0]) == bytes.size()) character_ids_[decode_character(s, bytes.size())] = id;
    for (size_t i = 1; i < bytes.size(); ++i)
      if (!is_inside_character(bytes[i])) is_cut_[s[i - 1]][s[i]] = 0;
  }

  std::vector<int32_t> character_ids_;  // code point -> id
  MergeTable merges_;
  std::array<std::array<uint8_t, 256>, 256> is_cut_;
  std::array<std::vector<std::pair<std::string, int32_t>>, 256> symbols_;  // by their first byte, longest first
};

// -------------------------------------------------------------------------------------------------------- merging

// Byte-pair encoding of one word: join the best-ranked pair, the leftmost of equals, until no pair is a piece.
class Merger {
 public:
  explicit Merger(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  template <class Id>
  Id* encode(const uint8_t* word, size_t size, Id* out) {
    symbols_.clear();
    for (size_t i = 0; i < size;) {
      const size_t length = length_by_first_byte(word[i]);
      symbols_.push_back({vocabulary_.character_id(word + i, length), uint32_t(i)});
      i += length;
    }
    const size_t count = symbols_.size() <= kShort ? merge_short() : merge_long();
    for (size_t i = 0; i < count; ++i) {
      if (symbols_[i].id != kUnknown) {
        *out++ = Id(symbols_[i].id);
        continue;
      }
      const size_t end = symbols_[i].begin + length_by_first_byte(word[symbols_[i].begin]);
      for (size_t byte = symbols_[i].begin; byte < end; ++byte) *out++ = Id(vocabulary_.byte_ids[word[byte]]);
    }
    return out;
  }

 private:
  static constexpr size_t kShort = 32;  // up to here looking at every pair beats keeping a queue

  struct Symbol {
    int32_t id;
    uint32_t begin;
  };

  struct Candidate {
    uint32_t rank, left, right;
    int32_t left_id, right_id, merged_id;  // stale when the symbols have other ids by now
    bool operator<(const Candidate& other) const {  // the queue's top is its largest
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };

  size_t merge_short() {
    Merge merges[kShort];  // of symbol i and the next
    size_t count = symbols_.size();
    const auto look_up = [&](size_t i) { merges[i] = vocabulary_.merge(symbols_[i].id, symbols_[i + 1].id); };
    for (size_t i = 0; i + 1 < count; ++i) look_up(i);
    while (count > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < count; ++i)
        if (merges[i].rank < merges[best].rank) best = i;
      if (merges[best].rank == kNoMerge) break;
      symbols_[best].id = merges[best].id;
      --count;
      for (size_t i = best + 1; i < count; ++i) symbols_[i] = symbols_[i + 1], merges[i] = merges[i + 1];
      if (best + 1 < count) look_up(best);
      if (best > 0) look_up(best - 1);
    }
    return count;
  }

  size_t merge_long() {
    const uint32_t count = uint32_t(symbols_.size());
    constexpr uint32_t kNone = UINT32_MAX;
    std::vector<uint32_t> previous(count), next(count);
    std::vector<bool> is_joined(count, false);  // to the symbol on its left
    for (uint32_t i = 0; i < count; ++i) previous[i] = i ? i - 1 : kNone, next[i] = i + 1 < count ? i + 1 : kNone;
    std::priority_queue<Candidate> queue;
    const auto consider = [&](uint32_t left, uint32_t right) {
      if (left == kNone || right == kNone) return;
      const int32_t left_id = symbols_[left].id, right_id = symbols_[right].id;
      const Merge merge = vocabulary_.merge(left_id, right_id);
      if (merge.rank != kNoMerge) queue.push({merge.rank, left, right, left_id, right_id, merge.id});
    };
    for (uint32_t i = 0; i + 1 < count; ++i) consider(i, i + 1);
    while (!queue.empty()) {
      const Candidate top = queue.top();
      queue.pop();
      const bool is_stale = is_joined[top.left] || is_joined[top.right] || next[top.left] != top.right ||
                            symbols_[top.left].id != top.left_id || symbols_[top.right].id != top.right_id;
      if (is_stale) continue;
      symbols_[top.left].id = top.merged_id;
      is_joined[top.right] = true;
      next[top.left] = next[top.right];
      if (next[top.left] != kNone) previous[next[top.left]] = top.left;
      consider(previous[top.left], top.left);
      consider(top.left, next[top.left]);
    }
    size_t kept = 0;
    for (uint32_t i = 0; i < count; ++i)
      if (!is_joined[i]) symbols_[kept++] = symbols_[i];
    return kept;
  }

  const Vocabulary& vocabulary_;
  std::vector<Symbol> symbols_;
};

// ---------------------------------------------------------------------------------------------------------- cache

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
      uint64_t difference = size ^ wanted_size;  // the size too: a word may end in NUL
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
      hash = (hash ^ place.key[i]) * 0x9E3779B97F4A7C15;
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

// -------------------------------------------------------------------------------------------------------- encoder

template <class Id>
class Encoder {
 public:
  Encoder(const std::unordered_map<int32_t, std::pair<std::string, float>>& pieces,
          const std::unordered_map<int32_t, std::string>& symbols, const std::array<int32_t, 256>& byte_ids,
          bool add_dummy_prefix)
      : vocabulary_(as_pieces(pieces), symbols, byte_ids), merger_(vocabulary_), prefix_(add_dummy_prefix ? " " : "") {}

  // Encode texts i = data[offsets[i]:offsets[i + 1]] into `ids`, end to end, and their numbers of ids into `lengths`.
  // `end_id` >= 0 is appended to every text that has ids. Returns the ids written.
  size_t encode(const py::buffer& data, const py::array_t<int64_t, py::array::c_style>& offsets,
                py::array_t<Id, py::array::c_style>& ids, py::array_t<int64_t, py::array::c_style>& lengths,
                int64_t end_id) {
    const py::buffer_info bytes = data.request();
    const auto* text = static_cast<const uint8_t*>(bytes.ptr);
    const int64_t* bounds = offsets.data();
    const ssize_t count = lengths.size();
    int64_t* lengths_out = lengths.mutable_data();
    Id *const begin = ids.mutable_data(), *out = begin;
    if (offsets.size() != count + 1 || bounds[0] < 0 || bounds[count] > bytes.size * bytes.itemsize)
      throw std::invalid_argument("offsets do not fit the data");
    if (size_t(ids.size()) < size_t(bounds[count] - bounds[0] + 2 * count) + kPadding)
      throw std::invalid_argument("no room for the ids");

    const py::gil_scoped_release without_gil;
    const std::lock_guard<std::mutex> lock(mutex_);  // the caches serve one thread at a time
    for (ssize_t i = 0; i < count; ++i) {
      if (bounds[i + 1] < bounds[i]) throw std::invalid_argument("offsets do not ascend");
      Id* const first = out;
      try {
        out = encode_text(text + bounds[i], size_t(bounds[i + 1] - bounds[i]), out);
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument("text " + std::to_string(i) + " " + error.what());
      }
      if (end_id >= 0 && out > first) *out++ = Id(end_id);
      lengths_out[i] = out - first;
    }
    return size_t(out - begin);
  }

 private:
  static constexpr size_t kBlock = 16;  // words whose cache entries are fetched together

  static std::unordered_map<int32_t, Piece> as_pieces(
      const std::unordered_map<int32_t, std::pair<std::string, float>>& pairs) {
    std::unordered_map<int32_t, Piece> pieces;
    for (const auto& [id, pair] : pairs) pieces[id] = {pair.first, pair.second};
    return pieces;
  }

  Id* encode_text(const uint8_t* text, size_t size, Id* out) {
    if (!size) return out;  // no dummy prefix either
    buffer_.resize(std::max(buffer_.size(), prefix_.size() + size + kPadding));
    std::copy(prefix_.begin(), prefix_.end(), buffer_.begin());
    const uint8_t* s = buffer_.data();
    const uint8_t* const end = normalise(text, size, buffer_.data() + prefix_.size());
    if (vocabulary_.has_symbols) {
      for (const uint8_t* place = s; place < end;) {
        const auto* symbol = vocabulary_.symbol_at(place, size_t(end - place));
        if (!symbol) {
          place += length_by_first_byte(*place);
          continue;
        }
        out = encode_span(s, place, out);
        *out++ = Id(symbol->second);
        s = place += symbol->first.size();
      }
    }
    return encode_span(s, end, out);
  }

  Id* encode_span(const uint8_t* s, const uint8_t* end, Id* out) {
    typename WordCache<Id, 16>::Place places[kBlock];
    const uint8_t* ends[kBlock + 1];
    while (s < end) {
      size_t count = 0;
      const uint8_t* next = s + 1;
      for (; next < end && count < kBlock; ++next) {
        ends[count] = next;
        count += vocabulary_.is_cut(next[-1], next[0]);
      }
      if (count < kBlock) ends[count++] = end;
      const uint8_t* word = s;
      for (size_t i = 0; i < count; word = ends[i++])
        places[i] = short_words_.locate(word, std::min<size_t>(16, size_t(ends[i] - word)));
      for (size_t i = 0; i < count; s = ends[i++]) out = encode_word(s, size_t(ends[i] - s), places[i], out);
    }
    return out;
  }

  Id* encode_word(const uint8_t* word, size_t size, const typename WordCache<Id, 16>::Place& place, Id* out) {
    const auto merge = [&](Id* to) { return merger_.encode(word, size, to); };
    if (size <= 16) return short_words_.encode(place, size, out, merge);
    if (size <= 32) return long_words_.encode(long_words_.locate(word, size), size, out, merge);
    return merge(out);
  }

  Vocabulary vocabulary_;
  Merger merger_;
  const std::string prefix_;
  WordCache<Id, 16> short_words_{15};
  WordCache<Id, 32> long_words_{13};
  std::vector<uint8_t> buffer_;
  std::mutex mutex_;
};

template <class Id>
void define_encoder(py::module_& module, const char* name) {
  using Pieces = std::unordered_map<int32_t, std::pair<std::string, float>>;
  py::class_<Encoder<Id>>(module, name)
      .def(py::init<const Pieces&, const std::unordered_map<int32_t, std::string>&, const std::array<int32_t, 256>&,
                    bool>(),
           py::arg("pieces"), py::arg("symbols"), py::arg("byte_ids"), py::arg("add_dummy_prefix"))
      .def("encode", &Encoder<Id>::encode, py::arg("data"), py::arg("offsets"), py::arg("ids").noconvert(),
           py::arg("lengths").noconvert(), py::arg("end_id"));
}

}  // namespace

PYBIND11_MODULE(_sentencepiece_bpe, module) {
  define_encoder<uint16_t>(module, "Encoder16");
  define_encoder<int32_t>(module, "Encoder32");
  module.attr("padding") = kPadding;
  module.attr("source_sha256") = SOURCE_SHA256;
}
