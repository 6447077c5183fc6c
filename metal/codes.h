// V neighbouring codes of a packed row, and their values as floats.
//
// A row of MLX's formats is a little-endian stream of codes in uint words.
//   read(words)  reads V * bits / 32 of them
//   value(i)     is such that code i means value(i) * unit(i) * factor()
// unit(i) spares a shift: x is multiplied by it instead, once for all rows. i is a
// constant once loops are unrolled.
#ifndef MLX_GLU_CODES_H
#define MLX_GLU_CODES_H

#include "load.h"

namespace mlx_glu {

// 3, 5 and 6 bits: a code may lie in two words.
template <int bits, int V>
struct Straddling {
  uint w[V * bits / 32];

  void read(const device uint* words) {
    read_words<V * bits / 32>(words, w);
  }
  float value(int i) const {
    int word = i * bits / 32, low = i * bits % 32;
    uint code = w[word] >> low;
    if (low + bits > 32) {
      code |= w[word + 1] << (32 - low);
    }
    return float(code & ((1u << bits) - 1u));
  }
  static float unit(int) { return 1.0f; }
  static float factor() { return 1.0f; }
};

// 2 and 4 bits: codes are masked where they stand, in halves of words.
template <int bits, int V>
struct Masked {
  enum { words = V * bits / 32, each = 16 / bits };
  ushort4 w[(words + 1) / 2];

  void read(const device uint* p) {
    for (int i = 0; i < words; i += 2) {
      if (words == 1) {
        w[i].xy = read_vector<ushort2>(p);
      } else {
        w[i / 2] = read_vector<ushort4>(p + i);
      }
    }
  }
  float value(int i) const {
    ushort mask = ((1 << bits) - 1) << (i % each * bits);
    return float(ushort(w[i / each / 4][i / each % 4] & mask));
  }
  static float unit(int i) {
    return 1.0f / float(1 << (i % each * bits));
  }
  static float factor() { return 1.0f; }
};

// 8 bits.
template <int bits, int V>
struct Bytes {
  uchar4 w[V / 4];

  void read(const device uint* p) {
    for (int i = 0; i < V / 4; i += 2) {
      uint2 two = read_vector<uint2>(p + i);
      w[i] = as_type<uchar4>(two.x);
      w[i + 1] = as_type<uchar4>(two.y);
    }
  }
  float value(int i) const { return float(w[i / 4][i % 4]); }
  static float unit(int) { return 1.0f; }
  static float factor() { return 1.0f; }
};

// E2M1, the 4 bits of mxfp4 and nvfp4: sign, two bits of exponent, one of mantissa.
// Put into a half they are 2^14 times too small.
template <int bits, int V>
struct E2M1 {
  uint w[V / 8];

  void read(const device uint* words) {
    read_words<V / 8>(words, w);
  }
  float value(int i) const {
    int low = i % 4 * 4; // this code and the one 16 bits above, as two halves
    uint word = w[i / 8];
    uint two = (low < 9 ? word << (9 - low) : word >> (low - 9)) & 0x0e000e00u;
    two |= word << (12 - low) & 0x80008000u;
    half2 pair = as_type<half2>(two);
    return float(i % 8 < 4 ? pair.x : pair.y);
  }
  static float unit(int) { return 1.0f; }
  static float factor() { return 16384.0f; }
};

// Bytes 0 and 2 of a word, both E4M3, as halves 2^8 times too small. 0x7f is NaN.
inline half2 e4m3_pair(uint word) {
  uint size = word & 0x007f007fu, nan = (size + 0x00010001u) << 7 & 0x40004000u;
  return as_type<half2>(size << 7 | nan | (word & 0x00800080u) << 8);
}

// E4M3, the 8 bits of mxfp8.
template <int bits, int V>
struct E4M3 {
  uint w[V / 4];

  void read(const device uint* words) {
    read_words<V / 4>(words, w);
  }
  float value(int i) const {
    half2 two = e4m3_pair(w[i / 4] >> (i % 2 * 8));
    return float(i % 4 < 2 ? two.x : two.y);
  }
  static float unit(int) { return 1.0f; }
  static float factor() { return 256.0f; }
};

} // namespace mlx_glu

#endif
