// y = x W^T + bias + residual for a weight of floats: down_matvec() of projection.h
// over Dense of dense.h.
//
//   x [M, K], M up to Tile::max_M; W: Dense{[N, K]}; y and residual [M, N]
//   bias [N]; None() for what is absent
// Grid: 64 threads a threadgroup, ceil(N / (2 * Tile::R)) threadgroups.
// Bytes: K * N elements, once; x once a simdgroup. Bandwidth-bound.
// float inside, rounded once, residual included.
#include "dense.h"
#include "projection.h"
