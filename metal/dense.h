// A weight [N, K] of floats, in the place of quant.h's Packed.
#ifndef MLX_GLU_DENSE_H
#define MLX_GLU_DENSE_H

#include "load.h"

namespace mlx_glu {

template <typename Tile, typename T>
struct Dense {
  enum { R = Tile::R };
  const device T* weight;

  struct Codes {
    float w[Tile::V];

    float value(int i) const { return w[i]; }
    static float unit(int) { return 1.0f; }
  };
  struct Chunk {
    Codes codes;

    float scaled(int, float dot, float) const { return dot; }
  };
  void load(thread Chunk& c, ulong row, uint k) const {
    read_floats<Tile::V>(weight + row * Tile::K + k, c.codes.w);
  }
};

} // namespace mlx_glu

#endif
