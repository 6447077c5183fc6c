// phi(norm(x) Wg^T + bg) * psi(norm(x) Wu^T + bu), for weights of any layout.
#ifndef MLX_GLU_GATED_H
#define MLX_GLU_GATED_H

#include "act.h"
#include "norm.h"

namespace mlx_glu {

template <
    typename Act, typename Tile, typename T, typename Norm, typename Gate,
    typename Up, typename GB, typename UB, typename Shares>
void glu_matvec(
    const device T* x, Norm norm, Gate gate, Up up, GB gate_bias, UB up_bias,
    device T* y, Shares shares, uint M, Place here) {
  uint first = Tile::first(here), rows = Tile::rows(first);
  Sums<Tile> sums = {};
  Rows<Tile::max_M>::template add<Tile>(
      M, sums, x, norm, gate, up, first, rows, here.lane);
  float scale = norm.template scale<Tile>(sums.squares, shares, M, here);
  float g = scale * own_sum<Tile>(sums.first, M, here.lane);
  float u = scale * own_sum<Tile>(sums.second, M, here.lane);
  uint m = here.lane / Tile::R, r = here.lane % Tile::R, n = first + r;
  if (m < M && r < rows) {
    g += at(gate_bias, n);
    u += at(up_bias, n);
    y[ulong(m) * Tile::N + n] = T(Act::fwd(g, u));
  }
}

} // namespace mlx_glu

#endif
