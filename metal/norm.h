// RMSNorm on the way into a product, without a pass of its own.
//
// x is multiplied by the norm's weight as it is read and its squares are added up
// beside the dot products, which their root mean divides at the end: exact algebra,
// biases of a packed weight included.
#ifndef MLX_GLU_NORM_H
#define MLX_GLU_NORM_H

#include "matvec.h"

namespace mlx_glu {

struct NoNorm {
  template <int M, int S>
  void apply(thread float (&)[M][S], uint, thread float*) const {}
  template <typename Tile, typename Shares>
  float scale(const thread float*, Shares, uint, Place) const {
    return 1.0f;
  }
};

// eps holds the bits of a float; offset is 1 for Gemma's 1 + w.
template <uint eps, int offset, typename T>
struct RmsNorm {
  const device T* weight;

  template <int M, int S>
  void apply(thread float (&x)[M][S], uint k, thread float* squares) const {
    float w[S];
    read_floats<S>(weight + k, w);
    for (int m = 0; m < M; m++) {
      for (int i = 0; i < S; i++) {
        squares[m] += x[m][i] * x[m][i];
        x[m][i] *= offset ? w[i] + offset : w[i];
      }
    }
  }

  // 1 / rms of the row of x that this lane stores. Every simdgroup has read all of
  // x, so one shares its sums; added up here they cost no simd operation.
  template <typename Tile>
  float scale(
      const thread float* squares, threadgroup float* shares, uint M,
      Place here) const {
    for (uint m = 0; m < M && here.simdgroup == 0; m++) {
      shares[m * Tile::lanes + here.lane] = squares[m];
    }
    threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    uint m = here.lane / Tile::R;
    float sum = 0.0f;
    for (int i = 0; i < Tile::lanes && m < M; i++) {
      sum += shares[m * Tile::lanes + i];
    }
    return metal::precise::rsqrt(sum / Tile::K + as_type<float>(eps));
  }
};

} // namespace mlx_glu

#endif
