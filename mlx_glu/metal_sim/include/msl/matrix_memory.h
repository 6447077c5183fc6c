// Loads and stores of simdgroup_matrix, for memory of address space MSL_SPACE.
// Element (row, column) lies at (origin.y + row) * stride + origin.x + column.

template <typename T>
MSL_FN void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& m, const MSL_SPACE T* from,
                           ulong stride = 8, ulong2 origin = ulong2{0, 0},
                           bool transpose = false) {
  ulong row = __matrix_row(__msl_lane()), column = __matrix_column(__msl_lane());
  from += origin.y * stride + origin.x;
  MSL_EACH(e, 2) {
    m.t[e] = transpose ? from[(column + e) * stride + row]
                       : from[row * stride + column + e];
  }
}

template <typename T>
MSL_FN void simdgroup_store(simdgroup_matrix<T, 8, 8> m, MSL_SPACE T* to,
                            ulong stride = 8, ulong2 origin = ulong2{0, 0},
                            bool transpose = false) {
  ulong row = __matrix_row(__msl_lane()), column = __matrix_column(__msl_lane());
  to += origin.y * stride + origin.x;
  MSL_EACH(e, 2) {
    if (transpose) {
      to[(column + e) * stride + row] = m.t[e];
    } else {
      to[row * stride + column + e] = m.t[e];
    }
  }
}
