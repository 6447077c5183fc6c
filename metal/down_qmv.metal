// y = x W^T + bias + residual for a packed weight: down_matvec() of projection.h
// over Packed of quant.h.
//
//   x [M, K], M up to Tile::max_M; y and residual [M, N]; bias [N]
//   W: Packed{words [N, K * bits / 32], scales, biases [N, K / group]}
//   None() for what is absent
// Grid: 64 threads a threadgroup, ceil(N / (2 * Tile::R)) threadgroups.
// Bytes: K * N * (bits + 32 / group) / 8 with 16-bit scales, once; x once a
// simdgroup. Bandwidth-bound. float inside, rounded once, residual included.
#include "projection.h"
#include "quant.h"
