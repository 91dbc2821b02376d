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
#include <functional>
#include <mutex>
#include <queue>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "utf8.h"
#include "word_cache.h"

namespace py = pybind11;

namespace {

constexpr uint32_t kNoMerge = UINT32_MAX;
constexpr int32_t kUnknown = -1;
constexpr size_t kPadding = 64;  // readable bytes after a text, room for ids after the output: whole blocks are moved

// ---- vocabulary

using Pieces = std::unordered_map<int32_t, std::pair<std::string, float>>;  // id -> piece and score
using Symbols = std::unordered_map<int32_t, std::string>;                   // id -> user-defined piece

struct Merge {
  uint32_t rank = kNoMerge;  // lower is done first; pieces of equal score have equal rank
  int32_t id = kUnknown;     // of the piece that is made
};

// (id, id) -> merge; open addressing, never full.
class MergeTable {
 public:
  explicit MergeTable(const Pieces& pieces) {
    std::unordered_map<std::string, int32_t> ids;
    std::vector<float> scores;
    size_t num_bytes = 0;  // more than there are merges: a piece can be cut after each of its bytes but the last
    for (const auto& [id, piece] : pieces) {
      ids[piece.first] = id;
      scores.push_back(piece.second);
      num_bytes += piece.first.size();
    }
    std::sort(scores.begin(), scores.end(), std::greater<>());
    size_t size = 16;
    while (size < num_bytes) size *= 2;
    entries_.resize(size);
    for (const auto& [id, piece] : pieces) {
      const auto rank = std::lower_bound(scores.begin(), scores.end(), piece.second, std::greater<>()) - scores.begin();
      for (size_t cut = 1; cut < piece.first.size(); ++cut) {
        const auto left = ids.find(piece.first.substr(0, cut)), right = ids.find(piece.first.substr(cut));
        if (left == ids.end() || right == ids.end()) continue;
        entries_[slot(left->second, right->second)] = {left->second, right->second, {uint32_t(rank), id}};
      }
    }
  }

  Merge find(int32_t left, int32_t right) const {
    return left == kUnknown || right == kUnknown ? Merge{} : entries_[slot(left, right)].merge;
  }

 private:
  struct Entry {
    int32_t left = kUnknown, right = kUnknown;
    Merge merge;
  };

  // Where the entry of a pair is, or the empty one that would take it.
  size_t slot(int32_t left, int32_t right) const {
    const uint64_t key = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
    for (size_t slot = (key * kHashFactor) >> 32;; ++slot) {
      const Entry& entry = entries_[slot &= entries_.size() - 1];
      if ((entry.left == left && entry.right == right) || entry.left == kUnknown) return slot;
    }
  }

  std::vector<Entry> entries_;
};

class Vocabulary {
 public:
  // pieces: those that merges make; symbols: those that are cut out of a text first.
  Vocabulary(const Pieces& pieces, const Symbols& symbols, const std::array<int32_t, 256>& byte_ids)
      : byte_ids(byte_ids), has_symbols(!symbols.empty()), character_ids_(0x110000, kUnknown), merges_(pieces) {
    for (auto& row : is_cut_) {
      row.fill(1);
      std::fill(row.begin() + 0x80, row.begin() + 0xC0, 0);  // inside a character
    }
    for (const auto& [id, piece] : pieces) add_characters(id, piece.first);
    for (const auto& [id, bytes] : symbols) symbols_[uint8_t(bytes[0])].emplace_back(bytes, id);
    for (auto& group : symbols_)
      std::sort(group.begin(), group.end(), [](auto& a, auto& b) { return a.first.size() > b.first.size(); });
  }

  const std::array<int32_t, 256> byte_ids;
  const bool has_symbols;

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
  void add_characters(int32_t id, const std::string& bytes) {
    const auto* s = reinterpret_cast<const uint8_t*>(bytes.data());
    if (length_by_first_byte(s[0]) == bytes.size()) character_ids_[decode_character(s, bytes.size())] = id;
    for (size_t i = 1; i < bytes.size(); ++i) is_cut_[s[i - 1]][s[i]] = 0;
  }

  std::vector<int32_t> character_ids_;  // code point -> id
  MergeTable merges_;
  std::array<std::array<uint8_t, 256>, 256> is_cut_;
  std::array<std::vector<std::pair<std::string, int32_t>>, 256> symbols_;  // by their first byte, longest first
};

// ---- merging

// Byte-pair encoding of one word: join the best-ranked pair, the leftmost of equals, until no pair is a piece.
class Merger {
 public:
  explicit Merger(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  template <class Id>
  Id* encode(const uint8_t* word, size_t size, Id* out) {
    symbols_.clear();
    for (uint32_t begin = 0; begin < size;) {
      const uint32_t length = uint32_t(length_by_first_byte(word[begin])), number = uint32_t(symbols_.size());
      symbols_.push_back({vocabulary_.character_id(word + begin, length), begin, number - 1, number + 1});
      begin += length;
    }
    symbols_.back().next = kNone;
    symbols_.size() <= kFew ? merge_few() : merge();
    for (uint32_t i = 0; i != kNone; i = symbols_[i].next) {
      if (symbols_[i].id != kUnknown) {
        *out++ = Id(symbols_[i].id);
      } else {
        const uint8_t* byte = word + symbols_[i].begin;
        for (size_t left = length_by_first_byte(*byte); left; --left) *out++ = Id(vocabulary_.byte_ids[*byte++]);
      }
    }
    return out;
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;  // also what precedes symbol 0: 0 - 1
  static constexpr int32_t kJoined = -2;         // to the symbol on its left
  static constexpr size_t kFew = 32;             // symbols, of which to look through all pairs beats a queue of them

  struct Symbol {
    int32_t id;
    uint32_t begin, previous, next;
  };

  struct Candidate {
    Merge merge;
    uint32_t left, right;
    int32_t left_id, right_id;
    bool operator<(const Candidate& other) const {  // the queue's top is its largest
      return merge.rank != other.merge.rank ? merge.rank > other.merge.rank : left > other.left;
    }
  };

  void merge_few() {
    pairs_.clear();
    for (size_t i = 0; i + 1 < symbols_.size(); ++i) pairs_.push_back(pair_at(i));
    while (!pairs_.empty()) {
      size_t best = 0;
      for (size_t i = 1; i < pairs_.size(); ++i)
        if (pairs_[i].rank < pairs_[best].rank) best = i;
      if (pairs_[best].rank == kNoMerge) break;
      symbols_[best].id = pairs_[best].id;
      symbols_.erase(symbols_.begin() + ptrdiff_t(best) + 1);
      pairs_.erase(pairs_.begin() + ptrdiff_t(best));
      if (best > 0) pairs_[best - 1] = pair_at(best - 1);
      if (best < pairs_.size()) pairs_[best] = pair_at(best);
    }
    for (uint32_t i = 0; i < symbols_.size(); ++i) symbols_[i].next = i + 1;
    symbols_.back().next = kNone;
  }

  Merge pair_at(size_t left) const { return vocabulary_.merge(symbols_[left].id, symbols_[left + 1].id); }

  void merge() {
    for (uint32_t i = 0; i + 1 < symbols_.size(); ++i) consider(i, i + 1);
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      Symbol &left = symbols_[top.left], &right = symbols_[top.right];
      if (left.id != top.left_id || right.id != top.right_id) continue;  // one has been merged with another meanwhile
      left.id = top.merge.id;
      left.next = right.next;
      right.id = kJoined;
      if (left.next != kNone) symbols_[left.next].previous = top.left;
      consider(left.previous, top.left);
      consider(top.left, left.next);
    }
  }

  void consider(uint32_t left, uint32_t right) {
    if (left == kNone || right == kNone) return;
    const int32_t left_id = symbols_[left].id, right_id = symbols_[right].id;
    const Merge merge = vocabulary_.merge(left_id, right_id);
    if (merge.rank != kNoMerge) queue_.push({merge, left, right, left_id, right_id});
  }

  const Vocabulary& vocabulary_;
  std::vector<Symbol> symbols_;
  std::vector<Merge> pairs_;  // of each symbol with its right neighbour
  std::priority_queue<Candidate> queue_;
};

// ---- encoder

template <class Id>
class Encoder {
 public:
  Encoder(const Pieces& pieces, const Symbols& symbols, const std::array<int32_t, 256>& byte_ids,
          bool add_dummy_prefix)
      : vocabulary_(pieces, symbols, byte_ids), merger_(vocabulary_), prefix_(add_dummy_prefix ? " " : "") {}

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

  Id* encode_text(const uint8_t* text, size_t size, Id* out) {
    if (!size) return out;  // no dummy prefix either
    if (size > INT32_MAX) throw std::invalid_argument("has more than 2 GiB");
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
    const uint8_t* ends[kBlock];
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
  WordCache<Id, 16> short_words_{16};
  WordCache<Id, 32> long_words_{13};
  std::vector<uint8_t> buffer_;
  std::mutex mutex_;
};

template <class Id>
void define_encoder(py::module_& module, const char* name) {
  py::class_<Encoder<Id>>(module, name)
      .def(py::init<const Pieces&, const Symbols&, const std::array<int32_t, 256>&, bool>(), py::arg("pieces"),
           py::arg("symbols"), py::arg("byte_ids"), py::arg("add_dummy_prefix"))
      .def("encode", &Encoder<Id>::encode, py::arg("data"), py::arg("offsets"), py::arg("ids").noconvert(),
           py::arg("lengths").noconvert(), py::arg("end_id"));
}

}  // namespace

PYBIND11_MODULE(_sentencepiece_bpe, module) {
  define_encoder<uint16_t>(module, "Encoder16");
  define_encoder<int32_t>(module, "Encoder32");
  module.attr("padding") = kPadding;
}
