// R rows of one or two weights times M rows of x, by one simdgroup.
//
// Lane l takes the chunks l, l + 32, l + 64 ... of V columns: neighbouring lanes
// read neighbouring words, and every word, scale and bias is read once. V divides
// K, so there is no tail in K. A chunk is multiplied in parts of S columns, which
// lie in one group.
#ifndef MLX_GLU_MATVEC_H
#define MLX_GLU_MATVEC_H

#include "load.h"

namespace mlx_glu {

// Where this thread stands: threadgroup, simdgroup in it, lane in that.
struct Place {
  uint group, simdgroup, lane;
};

// What is fixed when a kernel is built: sizes of the weights, columns of a chunk,
// largest number of rows of x, rows of a weight that a simdgroup takes.
template <int K_, int N_, int V_, int max_M_, int R_>
struct Tile {
  enum { K = K_, N = N_, V = V_, max_M = max_M_, R = R_ };
  enum { lanes = 32, groups = 2 }; // of a simdgroup; simdgroups of a threadgroup
  enum { whole = N_ % (R_ * groups) == 0 };

  // The first row of this simdgroup, and how many from there on exist.
  static uint first(Place here) {
    return (here.group * groups + here.simdgroup) * R;
  }
  static uint rows(uint first) {
    return first < N ? metal::min(uint(R), N - first) : 0;
  }
};

// One lane's share of the dot products, and of the squares of x for a norm.
template <typename Tile>
struct Sums {
  float first[Tile::max_M][Tile::R], second[Tile::max_M][Tile::R];
  float squares[Tile::max_M];
};

// A second weight that is not there: no rows.
struct NoWeight {
  enum { R = 0 };
  struct Codes {
    float value(int) const { return 0.0f; }
    static float unit(int) { return 1.0f; }
  };
  struct Chunk {
    Codes codes;

    float scaled(int, float, float) const { return 0.0f; }
  };
  void load(thread Chunk&, ulong, uint) const {}
};

// Multiplies columns i to i + S - 1 of chunks with x and adds the products to y.
template <typename W, int M, int S, typename Y>
void multiply(
    const thread typename W::Chunk* chunk, int i, const thread float (&x)[M][S],
    const thread float* sum, thread Y& y) {
  float units[M][S];
  for (int m = 0; m < M; m++) {
    for (int j = 0; j < S; j++) {
      units[m][j] = x[m][j] * W::Codes::unit(i + j);
    }
  }
#pragma unroll
  for (int r = 0; r < W::R; r++) {
    float w[S];
    for (int j = 0; j < S; j++) {
      w[j] = chunk[r].codes.value(i + j);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
      float dot = w[0] * units[m][0];
      for (int j = 1; j < S; j++) {
        dot += w[j] * units[m][j];
      }
      y[m][r] += chunk[r].scaled(i, dot, sum[m]);
    }
  }
}

// Adds up one lane's share for M rows of x and for the weights' rows from n on, of
// which `rows` exist.
template <
    typename Tile, int M, typename Y, typename T, typename N, typename A, typename B>
void add_products(
    thread Y& y, const device T* x, N norm, A a, B b, uint n, uint rows, uint lane) {
  enum { K = Tile::K, V = Tile::V, S = V <= 8 ? V : (M == 1 ? 16 : 8) };
  for (uint k = lane * V; k < K; k += Tile::lanes * V) {
    typename A::Chunk first[Tile::R];
    typename B::Chunk second[Tile::R];
#pragma unroll
    for (int r = 0; r < Tile::R; r++) {
      if (Tile::whole || uint(r) < rows) {
        a.load(first[r], n + r, k);
        b.load(second[r], n + r, k);
      } else {
        first[r] = {};
        second[r] = {};
      }
    }
#pragma unroll
    for (int i = 0; i < V; i += S) {
      float part[M][S], sum[M];
#pragma unroll
      for (int m = 0; m < M; m++) {
        read_floats<S>(x + ulong(m) * K + k + i, part[m]);
      }
      norm.apply(part, k + i, y.squares);
      for (int m = 0; m < M; m++) {
        sum[m] = part[m][0];
        for (int j = 1; j < S; j++) {
          sum[m] += part[m][j];
        }
      }
      multiply<A>(first, i, part, sum, y.first);
      multiply<B>(second, i, part, sum, y.second);
    }
  }
}

// Adds the lanes' shares: lane m * R + r gets row r of the weight for row m of x.
template <typename Tile>
float own_sum(
    const thread float (&y)[Tile::max_M][Tile::R], uint M, uint lane) {
  float own = 0.0f;
  for (int m = 0; m < Tile::max_M; m++) {
#pragma unroll
    for (int r = 0; r < Tile::R && uint(m) < M; r++) {
      float sum = metal::simd_sum(y[m][r]);
      own = lane == uint(m * Tile::R + r) ? sum : own;
    }
  }
  return own;
}

// add() for the M that is given, one of 1 to m.
template <int m>
struct Rows {
  template <typename Tile, typename Y, typename... Args>
  static void add(uint M, thread Y& y, Args... args) {
    if (M == m) {
      add_products<Tile, m>(y, args...);
    } else {
      Rows<m - 1>::template add<Tile>(M, y, args...);
    }
  }
};

template <>
struct Rows<1> {
  template <typename Tile, typename Y, typename... Args>
  static void add(uint, thread Y& y, Args... args) {
    add_products<Tile, 1>(y, args...);
  }
};

} // namespace mlx_glu

#endif
