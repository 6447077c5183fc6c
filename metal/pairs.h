// Where the gate and up of an output element lie: in two arrays, or in one whose
// rows are [gate | up] (concat) or [gate up gate up ...] (interleave), either first.
//
//   read(i, gate, up), write(i, gate, up): elements i * V to i * V + V - 1 of each
// V divides N.
#ifndef MLX_GLU_PAIRS_H
#define MLX_GLU_PAIRS_H

#include "load.h"

namespace mlx_glu {

template <int V_, typename P>
struct Separate {
  enum { V = V_ };
  P gate, up;

  void read(ulong i, thread float* g, thread float* u) const {
    read_floats<V>(gate + i * V, g);
    read_floats<V>(up + i * V, u);
  }
  void write(ulong i, const thread float* g, const thread float* u) const {
    write_floats<V>(gate + i * V, g);
    write_floats<V>(up + i * V, u);
  }
};

template <int V_, int N, bool gate_first, typename P>
struct Concat {
  enum { V = V_ };
  P packed;

  void read(ulong i, thread float* g, thread float* u) const {
    P row = packed + i * V / N * N + i * V;
    read_floats<V>(row + (gate_first ? 0 : N), g);
    read_floats<V>(row + (gate_first ? N : 0), u);
  }
  void write(ulong i, const thread float* g, const thread float* u) const {
    P row = packed + i * V / N * N + i * V;
    write_floats<V>(row + (gate_first ? 0 : N), g);
    write_floats<V>(row + (gate_first ? N : 0), u);
  }
};

template <int V_, bool gate_first, typename P>
struct Interleaved {
  enum { V = V_ };
  P packed;

  void read(ulong i, thread float* g, thread float* u) const {
    float both[2 * V];
    read_floats<2 * V>(packed + i * 2 * V, both);
    for (int j = 0; j < V; j++) {
      g[j] = both[2 * j + !gate_first];
      u[j] = both[2 * j + gate_first];
    }
  }
  void write(ulong i, const thread float* g, const thread float* u) const {
    float both[2 * V];
    for (int j = 0; j < V; j++) {
      both[2 * j + !gate_first] = g[j];
      both[2 * j + gate_first] = u[j];
    }
    write_floats<2 * V>(packed + i * 2 * V, both);
  }
};

template <int V, typename P>
Separate<V, P> separate(P gate, P up) {
  return {gate, up};
}

template <int V, int N, bool gate_first, typename P>
Concat<V, N, gate_first, P> concat(P packed) {
  return {packed};
}

template <int V, bool gate_first, typename P>
Interleaved<V, gate_first, P> interleave(P packed) {
  return {packed};
}

} // namespace mlx_glu

#endif
