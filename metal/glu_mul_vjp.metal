// Gradients of h = phi(gate) * psi(up) by gate and up, from gate and up alone.
//
//   in: where gate and up lie, see pairs.h; d [..., N] gradient of the loss by h
//   out: where the two gradients go, laid out as in
// Grid: a thread for each V elements of d. Bytes: 3 elements read and 2 written for
// each of d; bandwidth-bound. float inside, rounded once.
#include "act.h"
#include "pairs.h"

namespace mlx_glu {

template <typename Act, typename In, typename T, typename Out>
void glu_mul_vjp(In in, const device T* d, Out out, ulong i) {
  enum { V = In::V };
  float gate[V], up[V], by_h[V], by_gate[V], by_up[V];
  in.read(i, gate, up);
  read_floats<V>(d + i * V, by_h);
  for (int j = 0; j < V; j++) {
    by_gate[j] = by_h[j] * Act::d_gate(gate[j], up[j]);
    by_up[j] = by_h[j] * Act::d_up(gate[j], up[j]);
  }
  out.write(i, by_gate, by_up);
}

} // namespace mlx_glu
