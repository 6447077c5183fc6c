// h = phi(gate) * psi(up), elementwise.
//
//   in: where gate and up lie, see pairs.h; h [..., N] of the dtype of both
// Grid: a thread for each V elements of h. Bytes: 2 elements read and 1 written for
// each of h; bandwidth-bound. float inside, rounded once.
#include "act.h"
#include "pairs.h"

namespace mlx_glu {

template <typename Act, typename In, typename T>
void glu_mul(In in, device T* h, ulong i) {
  enum { V = In::V };
  float gate[V], up[V], y[V];
  in.read(i, gate, up);
  for (int j = 0; j < V; j++) {
    y[j] = Act::fwd(gate[j], up[j]);
  }
  write_floats<V>(h + i * V, y);
}

} // namespace mlx_glu
