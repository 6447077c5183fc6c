// simdgroup_matrix: 8 x 8, two elements of a row in each lane.
#pragma once

namespace metal {

// Row and first column of the elements that a lane holds, laid out as MLX assumes
MSL_FN int __matrix_row(int lane) { return (lane / 4 & 4) + lane / 2 % 4; }
MSL_FN int __matrix_column(int lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <typename T, int Columns, int Rows = Columns> struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "MSL only has 8x8 simdgroup matrices");
  static_assert(is_floating_point_v<T>,
                "a simdgroup_matrix holds half, bfloat or float");
  using storage_type = vec<T, 2>;
  storage_type t;

  simdgroup_matrix() = default;
  MSL_FN explicit simdgroup_matrix(T diagonal) {
    int lane = __msl_lane();
    int offset = __matrix_row(lane) - __matrix_column(lane);
    t[0] = offset == 0 ? diagonal : (T)0;
    t[1] = offset == 1 ? diagonal : (T)0;
  }
  MSL_FN thread storage_type& thread_elements() { return t; }
  MSL_FN const thread storage_type& thread_elements() const { return t; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int Columns, int Rows>
MSL_FN simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> m;
  m.t[0] = m.t[1] = value;
  return m;
}
template <typename T, int Columns, int Rows>
MSL_FN simdgroup_matrix<T, Columns, Rows> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, Columns, Rows>(value);
}

#define MSL_SPACE device
#include "matrix_memory.h"
#undef MSL_SPACE
#ifdef MSL_LINT
#define MSL_SPACE threadgroup
#include "matrix_memory.h"
#undef MSL_SPACE
#endif

// d = a * b + c: products are added in float, one k after the other
template <typename D, typename A, typename B, typename C> struct __multiply {
  vec<D, 2> d;
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;

  MSL_COMBINE static void combine(void** slots) {
    float a[8][8] = {}, b[8][8] = {}, sum[8][8] = {};
    for (int lane = 0; lane < 32; lane++) {
      if (!slots[lane]) continue;
      auto* slot = (__multiply*)slots[lane];
      int row = __matrix_row(lane), column = __matrix_column(lane);
      for (int e = 0; e < 2; e++) {
        a[row][column + e] = slot->a[e];
        b[row][column + e] = slot->b[e];
        sum[row][column + e] = slot->c[e];
      }
    }
    for (int step = 0; step < 8; step++) {
      int k = __msl_reduce_order == 2 ? 7 - step : step;
      for (int row = 0; row < 8; row++) {
        for (int column = 0; column < 8; column++) {
          sum[row][column] += a[row][k] * b[k][column];
        }
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      if (!slots[lane]) continue;
      int row = __matrix_row(lane), column = __matrix_column(lane);
      auto* slot = (__multiply*)slots[lane];
      slot->d[0] = (D)sum[row][column];
      slot->d[1] = (D)sum[row][column + 1];
    }
  }
};

template <typename T> using __matrix = simdgroup_matrix<T, 8, 8>;

template <typename D, typename A, typename B, typename C>
MSL_CONVERGENT MSL_FN void simdgroup_multiply_accumulate(thread __matrix<D>& d,
                                                         const thread __matrix<A>& a,
                                                         const thread __matrix<B>& b,
                                                         const thread __matrix<C>& c) {
  using Multiply = __multiply<D, A, B, C>;
  Multiply lane{{}, a.t, b.t, c.t};
  __msl_collective(&Multiply::combine, &lane, "simdgroup_multiply_accumulate", 1);
  d.t = lane.d;
}
template <typename D, typename A, typename B>
MSL_CONVERGENT MSL_FN void simdgroup_multiply(thread __matrix<D>& d,
                                              const thread __matrix<A>& a,
                                              const thread __matrix<B>& b) {
  using Multiply = __multiply<D, A, B, D>;
  Multiply lane{{}, a.t, b.t, {}};
  __msl_collective(&Multiply::combine, &lane, "simdgroup_multiply", 1);
  d.t = lane.d;
}

template <typename T>
MSL_CONVERGENT MSL_FN __matrix<T> operator*(__matrix<T> a, __matrix<T> b) {
  __matrix<T> d;
  simdgroup_multiply(d, a, b);
  return d;
}
template <typename T> MSL_FN __matrix<T> operator+(__matrix<T> a, __matrix<T> b) {
  a.t += b.t;
  return a;
}
template <typename T> MSL_FN __matrix<T> operator-(__matrix<T> a, __matrix<T> b) {
  a.t -= b.t;
  return a;
}

}  // namespace metal
