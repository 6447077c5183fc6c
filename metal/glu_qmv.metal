// y = phi(norm(x) Wg^T + bg) * psi(norm(x) Wu^T + bu) for packed weights:
// glu_matvec() of gated.h over Packed of quant.h.
//
//   x [M, K], M up to Tile::max_M; y [M, N] of its dtype
//   gate, up: Packed{words [N, K * bits / 32], scales, biases [N, K / group]}, each
//   in a format of its own; one of them may be Dense{weight [N, K]}
//   gate_bias, up_bias [N]; None() for what is absent
//   norm: RmsNorm<eps, offset, T>{weight [K]} with shares, threadgroup
//   float[32 * max_M]; or NoNorm() with None()
// Grid: 64 threads a threadgroup, ceil(N / (2 * Tile::R)) threadgroups.
// Bytes: K * N * (bits + 32 / group) / 8 for each weight with 16-bit scales, once;
// x once a simdgroup. Bandwidth-bound at these M. float inside, rounded once.
#include "dense.h"
#include "gated.h"
#include "quant.h"
