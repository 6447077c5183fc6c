// What simd_* and quad_* functions share: slots, groups of lanes, the types they take.
#pragma once

namespace metal {

// One lane's part in a collective: what it brings and what it takes away.
template <typename T> struct __lane {
  T in, fill, out;
  uint k, modulo;
};

// The slots of the 4 lanes of a quadgroup or the 32 of a simdgroup
template <typename T> struct __lanes {
  void** slots;
  MSL_COMBINE bool active(int i) const { return slots[i] != nullptr; }
  MSL_COMBINE __lane<T>& operator[](int i) const { return *(__lane<T>*)slots[i]; }
};

// A reading of what MSL leaves undefined: NaN, or all ones
template <typename T> MSL_FN T __poison() {
  T r;
  __builtin_memset(&r, 0xff, sizeof(T));
  return r;
}

// Numbers of at most 32 bits, and their vectors
template <typename T>
constexpr bool __is_simd_type =
    __is_one_of<__element<T>, char, signed char, uchar, short, ushort, int, uint, float,
                half>;
template <typename T>
constexpr bool __is_simd_integer = __is_simd_type<T> && is_integral_v<__element<T>>;
template <typename T> constexpr bool __is_number = is_arithmetic_v<__element<T>>;

}  // namespace metal

// A function of one value per lane. The deleted twin keeps a long or a bool from being
// converted to some type that other overloads accept.
#define MSL_COLLECTIVE(name, is_allowed, ...)                                      \
  template <typename T, enable_if_t<is_allowed<T>, int> = 0>                       \
  MSL_CONVERGENT MSL_FN T name(T x) {                                              \
    __lane<T> lane;                                                                \
    lane.in = x;                                                                   \
    __msl_collective(&__VA_ARGS__::combine, &lane, #name, __size<T>);              \
    return lane.out;                                                               \
  }                                                                                \
  template <typename T, enable_if_t<__is_number<T> && !is_allowed<T>, int> = 0>    \
  T name(T) = delete("MSL has no " #name " of this type");
