// Integer functions.
#pragma once

namespace metal {

// The next wider type, for products and sums that must not overflow.
template <typename T> struct __wider : __identity<long> {};
template <> struct __wider<uint> : __identity<ulong> {};
template <> struct __wider<long> : __identity<__int128> {};
template <> struct __wider<ulong> : __identity<unsigned __int128> {};
template <typename T> using __wide = typename __wider<T>::type;
template <typename T> constexpr int __bits = sizeof(T) * 8;

template <typename T> MSL_FN T __saturated(__wide<T> x) {
  __wide<T> low = numeric_limits<T>::min(), high = numeric_limits<T>::max();
  return (T)(x < low ? low : x > high ? high : x);
}

#define MSL_INTEGER_FUNCTIONS(T)                                                   \
  MSL_FN T popcount(T x) {                                                         \
    return (T)__builtin_popcountll((make_unsigned_t<T>)x);                         \
  }                                                                                \
  MSL_FN T clz(T x) {                                                              \
    using U = make_unsigned_t<T>;                                                  \
    return x == 0 ? __bits<T> : (T)(__builtin_clzll((U)x) - (64 - __bits<T>));     \
  }                                                                                \
  MSL_FN T ctz(T x) { return x == 0 ? __bits<T> : (T)__builtin_ctzll((ulong)x); }  \
  MSL_FN T rotate(T x, T by) {                                                     \
    using U = make_unsigned_t<T>;                                                  \
    uint k = (U)by % __bits<T>;                                                    \
    return k ? (T)((U)((U)x << k) | (U)((U)x >> (__bits<T> - k))) : x;             \
  }                                                                                \
  MSL_FN T reverse_bits(T x) {                                                     \
    return (T)(__builtin_bitreverse64((ulong)x) >> (64 - __bits<T>));              \
  }                                                                                \
  MSL_FN T extract_bits(T x, uint offset, uint count) {                            \
    using U = make_unsigned_t<T>;                                                  \
    if (count == 0) return 0;                                                      \
    U top = (U)((U)x << (__bits<T> - count - offset));                             \
    return (T)((T)top >> (__bits<T> - count));                                     \
  }                                                                                \
  MSL_FN T insert_bits(T base, T insert, uint offset, uint count) {                \
    using U = make_unsigned_t<T>;                                                  \
    if (count == 0) return base;                                                   \
    U mask = (U)((U)((U)~(U)0 >> (__bits<T> - count)) << offset);                  \
    return (T)(((U)base & (U)~mask) | ((U)((U)insert << offset) & mask));          \
  }                                                                                \
  MSL_FN make_unsigned_t<T> absdiff(T a, T b) {                                    \
    using U = make_unsigned_t<T>;                                                  \
    return a > b ? (U)((U)a - (U)b) : (U)((U)b - (U)a);                            \
  }                                                                                \
  MSL_FN T addsat(T a, T b) {                                                      \
    T sum;                                                                         \
    if (!__builtin_add_overflow(a, b, &sum)) return sum;                           \
    return a < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();            \
  }                                                                                \
  MSL_FN T subsat(T a, T b) {                                                      \
    T difference;                                                                  \
    if (!__builtin_sub_overflow(a, b, &difference)) return difference;             \
    return a < b ? numeric_limits<T>::min() : numeric_limits<T>::max();            \
  }                                                                                \
  MSL_FN T hadd(T a, T b) { return (T)(((__wide<T>)a + b) >> 1); }                 \
  MSL_FN T rhadd(T a, T b) { return (T)(((__wide<T>)a + b + 1) >> 1); }            \
  MSL_FN T mulhi(T a, T b) { return (T)((__wide<T>)a * b >> __bits<T>); }          \
  MSL_FN T madhi(T a, T b, T c) {                                                  \
    return (T)((make_unsigned_t<T>)mulhi(a, b) + (make_unsigned_t<T>)c);           \
  }                                                                                \
  MSL_FN T madsat(T a, T b, T c) { return __saturated<T>((__wide<T>)a * b + c); }
MSL_EACH_INTEGER(MSL_INTEGER_FUNCTIONS)
#undef MSL_INTEGER_FUNCTIONS

MSL_FN int mul24(int a, int b) { return a * b; }
MSL_FN uint mul24(uint a, uint b) { return a * b; }
MSL_FN int mad24(int a, int b, int c) { return a * b + c; }
MSL_FN uint mad24(uint a, uint b, uint c) { return a * b + c; }

MSL_VECTOR_1(popcount, __integer_vector)
MSL_VECTOR_1(clz, __integer_vector)
MSL_VECTOR_1(ctz, __integer_vector)
MSL_VECTOR_1(reverse_bits, __integer_vector)
MSL_VECTOR_2(rotate, __integer_vector)
MSL_VECTOR_2(addsat, __integer_vector)
MSL_VECTOR_2(subsat, __integer_vector)
MSL_VECTOR_2(hadd, __integer_vector)
MSL_VECTOR_2(rhadd, __integer_vector)
MSL_VECTOR_2(mulhi, __integer_vector)
MSL_VECTOR_2(mul24, __integer_vector)
MSL_VECTOR_3(mad24, __integer_vector)
MSL_VECTOR_3(madhi, __integer_vector)
MSL_VECTOR_3(madsat, __integer_vector)

}  // namespace metal
