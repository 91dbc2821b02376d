// UTF-8 text: its characters, and the check that it is UTF-8.

#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace {

uint64_t load64(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

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

}  // namespace
