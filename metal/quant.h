// MLX's packed weights, read in place: affine 2, 3, 4, 5, 6, 8 bits in groups of 32,
// 64 or 128; mxfp4, mxfp8 in groups of 32; nvfp4 in groups of 16.
#ifndef MLX_GLU_QUANT_H
#define MLX_GLU_QUANT_H

#include "codes.h"

namespace mlx_glu {

// A format has codes, a group that shares a scale, and the scale as a float.

// Scales and biases are floats.
template <template <int, int> class C, int bits_, int group_>
struct Affine {
  enum { bits = bits_, group = group_ };
  template <int V>
  using Codes = C<bits_, V>;
  template <typename S>
  using Biases = const device S*;
  template <typename S>
  static float scale(S s) {
    return float(s);
  }
};

// mxfp4, mxfp8: scales are powers of two, a biased exponent.
template <template <int, int> class C, int bits_, int group_>
struct Mxfp {
  enum { bits = bits_, group = group_ };
  template <int V>
  using Codes = C<bits_, V>;
  template <typename S>
  using Biases = None;
  static float scale(uint s) { return as_type<float>(s == 0 ? 0x400000u : s << 23); }
};

// nvfp4: scales are E4M3.
template <template <int, int> class C, int bits_, int group_>
struct Nvfp {
  enum { bits = bits_, group = group_ };
  template <int V>
  using Codes = C<bits_, V>;
  template <typename S>
  using Biases = None;
  static float scale(uint s) { return 256.0f * float(e4m3_pair(s).x); }
};

// A packed weight [N, K] in format F with scales of type S.
template <typename F, typename Tile, typename S>
struct Packed {
  enum { V = Tile::V, K = Tile::K, R = Tile::R };
  enum { groups = V < F::group ? 1 : V / F::group };
  const device uint* words;
  const device S* scales;
  typename F::template Biases<S> biases;

  using Codes = typename F::template Codes<V>;

  // V codes of a row, and the scales of their groups.
  struct Chunk {
    Codes codes;
    float scale[groups], bias[groups];

    // What codes from i on, all of one group, contribute to a product: their dot
    // product with x and the sum of x, scaled.
    float scaled(int i, float dot, float sum) const {
      int g = i / F::group % groups;
      return scale[g] * dot + bias[g] * sum;
    }
  };
  void load(thread Chunk& c, ulong row, uint k) const {
    c.codes.read(words + row * (K * F::bits / 32) + k * F::bits / 32);
    for (int i = 0; i < groups; i++) {
      ulong group = row * (K / F::group) + k / F::group + i;
      c.scale[i] = F::scale(scales[group]) * Codes::factor();
      c.bias[i] = at(biases, group);
    }
  }
};

} // namespace mlx_glu

#endif
