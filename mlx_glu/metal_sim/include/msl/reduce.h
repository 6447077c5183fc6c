// Sums, products, extremes and prefix sums over a simdgroup or quadgroup.
#pragma once

namespace metal {

struct __op_sum {
  template <typename T> MSL_FN static T apply(T a, T b) { return a + b; }
  template <typename T> MSL_FN static T identity() { return (T)0; }
};
struct __op_product {
  template <typename T> MSL_FN static T apply(T a, T b) { return a * b; }
  template <typename T> MSL_FN static T identity() { return (T)1; }
};
struct __op_min {
  template <typename T> MSL_FN static T apply(T a, T b) { return min(a, b); }
};
struct __op_max {
  template <typename T> MSL_FN static T apply(T a, T b) { return max(a, b); }
};
struct __op_and {
  template <typename T> MSL_FN static T apply(T a, T b) { return a & b; }
};
struct __op_or {
  template <typename T> MSL_FN static T apply(T a, T b) { return a | b; }
};
struct __op_xor {
  template <typename T> MSL_FN static T apply(T a, T b) { return a ^ b; }
};

template <typename T, typename Op, int Width> struct __reduce {
  MSL_COMBINE static void in_order(__lanes<T> lanes, bool reversed) {
    T r{};
    bool first = true;
    for (int i = 0; i < Width; i++) {
      int lane = reversed ? Width - 1 - i : i;
      if (!lanes.active(lane)) continue;
      r = first ? lanes[lane].in : Op::apply(r, lanes[lane].in);
      first = false;
    }
    for (int i = 0; i < Width; i++) {
      if (lanes.active(i)) lanes[i].out = r;
    }
  }

  MSL_COMBINE static void as_tree(__lanes<T> lanes) {
    T value[Width];
    bool active[Width];
    for (int i = 0; i < Width; i++) {
      active[i] = lanes.active(i);
      if (active[i]) value[i] = lanes[i].in;
    }
    for (int half_width = Width / 2; half_width; half_width /= 2) {
      for (int i = 0; i < half_width; i++) {
        int other = i + half_width;
        if (!active[other]) continue;
        value[i] = active[i] ? Op::apply(value[i], value[other]) : value[other];
        active[i] = true;
      }
    }
    for (int i = 0; i < Width; i++) {
      if (lanes.active(i)) lanes[i].out = value[0];
    }
  }

  MSL_COMBINE static void combine(void** slots) {
    for (int first = 0; first < 32; first += Width) {
      __lanes<T> lanes{slots + first};
      if (__msl_reduce_order == 0) {
        as_tree(lanes);
      } else {
        in_order(lanes, __msl_reduce_order == 2);
      }
    }
  }
};

template <typename T, typename Op, bool Inclusive, int Width> struct __scan {
  MSL_COMBINE static void combine(void** slots) {
    T r{};
    for (int i = 0; i < 32; i++) {
      __lanes<T> lanes{slots};
      if (i % Width == 0) r = Op::template identity<T>();
      if (!lanes.active(i)) continue;
      T before = r;
      r = Op::apply(r, lanes[i].in);
      lanes[i].out = Inclusive ? r : before;
    }
  }
};

#define MSL_REDUCTION(op, is_allowed)                                    \
  MSL_COLLECTIVE(simd_##op, is_allowed, __reduce<T, __op_##op, 32>)      \
  MSL_COLLECTIVE(quad_##op, is_allowed, __reduce<T, __op_##op, 4>)
MSL_REDUCTION(sum, __is_simd_type)
MSL_REDUCTION(product, __is_simd_type)
MSL_REDUCTION(min, __is_simd_type)
MSL_REDUCTION(max, __is_simd_type)
MSL_REDUCTION(and, __is_simd_integer)
MSL_REDUCTION(or, __is_simd_integer)
MSL_REDUCTION(xor, __is_simd_integer)
#undef MSL_REDUCTION

#define MSL_PREFIX(op)                                                          \
  MSL_COLLECTIVE(simd_prefix_inclusive_##op, __is_simd_type,                    \
                 __scan<T, __op_##op, true, 32>)                                \
  MSL_COLLECTIVE(simd_prefix_exclusive_##op, __is_simd_type,                    \
                 __scan<T, __op_##op, false, 32>)                               \
  MSL_COLLECTIVE(quad_prefix_inclusive_##op, __is_simd_type,                    \
                 __scan<T, __op_##op, true, 4>)                                 \
  MSL_COLLECTIVE(quad_prefix_exclusive_##op, __is_simd_type,                    \
                 __scan<T, __op_##op, false, 4>)
MSL_PREFIX(sum)
MSL_PREFIX(product)
#undef MSL_PREFIX

}  // namespace metal
