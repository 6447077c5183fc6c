// x W^T + bias + residual, for a weight of any layout.
#ifndef MLX_GLU_PROJECTION_H
#define MLX_GLU_PROJECTION_H

#include "norm.h"

namespace mlx_glu {

template <
    typename Tile, typename T, typename Weight, typename Bias, typename Residual>
void down_matvec(
    const device T* x, Weight weight, Bias bias, Residual residual, device T* y,
    uint M, Place here) {
  uint first = Tile::first(here), rows = Tile::rows(first);
  Sums<Tile> sums = {};
  Rows<Tile::max_M>::template add<Tile>(
      M, sums, x, NoNorm(), weight, NoWeight(), first, rows, here.lane);
  float value = own_sum<Tile>(sums.first, M, here.lane);
  uint m = here.lane / Tile::R, r = here.lane % Tile::R, n = first + r;
  if (m < M && r < rows) {
    ulong i = ulong(m) * Tile::N + n;
    y[i] = T(value + at(bias, n) + at(residual, i));
  }
}

} // namespace mlx_glu

#endif
