// y = phi(norm(x) Wg^T + bg) * psi(norm(x) Wu^T + bu) for weights of floats:
// glu_matvec() of gated.h over Dense of dense.h.
//
//   x [M, K], M up to Tile::max_M; gate, up: Dense{[N, K]}; y [M, N] as x
//   biases, norm and shares as in glu_qmv.metal
// Grid: 64 threads a threadgroup, ceil(N / (2 * Tile::R)) threadgroups.
// Bytes: 2 * K * N elements, once; x once a simdgroup. Bandwidth-bound.
// float inside, rounded once.
#include "dense.h"
#include "gated.h"
