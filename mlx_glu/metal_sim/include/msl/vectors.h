// Vector types: clang's ext_vector_type, which brings swizzles and operators.
//
// Comparisons of such vectors give integer masks of 0 and -1 where MSL gives boolN.
// boolN, any, all and select accept both.
#pragma once

namespace metal {

template <typename T, int N> using vec = T __attribute__((ext_vector_type(N)));

// Elements that have both a name and an index, without padding.
template <typename T, int N> struct __elements_of;
template <typename T> struct __elements_of<T, 2> {
  union {
    T v[2];
    struct {
      T x, y;
    };
  };
};
template <typename T> struct __elements_of<T, 3> {
  union {
    T v[3];
    struct {
      T x, y, z;
    };
  };
};
template <typename T> struct __elements_of<T, 4> {
  union {
    T v[4];
    struct {
      T x, y, z, w;
    };
  };
};

template <int N> struct __bool_vector;

// Element type and number of elements; a scalar has one.
template <typename T> struct __vector {
  using element = T;
  static constexpr int size = 1;
};
template <typename T, int N> struct __vector<vec<T, N>> {
  using element = T;
  static constexpr int size = N;
};
template <int N> struct __vector<__bool_vector<N>> {
  using element = bool;
  static constexpr int size = N;
};
template <typename V> using __element = typename __vector<V>::element;
template <typename V> constexpr int __size = __vector<V>::size;
template <typename V> constexpr bool __is_vector = __vector<V>::size > 1;

template <int N> struct __bool_vector : __elements_of<bool, N> {
  using __elements_of<bool, N>::v;

  __bool_vector() = default;
  MSL_FN constexpr __bool_vector(bool b) {
    MSL_EACH(i, N) v[i] = b;
  }
  template <typename Mask, enable_if_t<__size<Mask> == N && (N > 1), int> = 0>
  MSL_FN constexpr __bool_vector(Mask mask) {
    MSL_EACH(i, N) v[i] = mask[i] != 0;
  }

  MSL_FN constexpr bool operator[](int i) const { return v[i]; }
  MSL_FN constexpr bool& operator[](int i) { return v[i]; }

#define MSL_BOOL_OPERATOR(op)                                                     \
  friend MSL_FN __bool_vector operator op(__bool_vector a, __bool_vector b) {     \
    __bool_vector r;                                                              \
    MSL_EACH(i, N) r.v[i] = a.v[i] op b.v[i];                                     \
    return r;                                                                     \
  }
  MSL_BOOL_OPERATOR(&)
  MSL_BOOL_OPERATOR(|)
  MSL_BOOL_OPERATOR(^)
  MSL_BOOL_OPERATOR(&&)
  MSL_BOOL_OPERATOR(||)
  MSL_BOOL_OPERATOR(==)
  MSL_BOOL_OPERATOR(!=)
#undef MSL_BOOL_OPERATOR
  friend MSL_FN __bool_vector operator!(__bool_vector a) {
    MSL_EACH(i, N) a.v[i] = !a.v[i];
    return a;
  }
};

}  // namespace metal

#define MSL_EACH_VECTOR_SCALAR(DO) \
  DO(char)                         \
  DO(uchar)                        \
  DO(short)                        \
  DO(ushort)                       \
  DO(int)                          \
  DO(uint)                         \
  DO(long)                         \
  DO(ulong)                        \
  DO(half)                         \
  DO(float)                        \
  DO(bfloat)

#define MSL_VECTOR_TYPES(T)      \
  typedef metal::vec<T, 2> T##2; \
  typedef metal::vec<T, 3> T##3; \
  typedef metal::vec<T, 4> T##4;
MSL_EACH_VECTOR_SCALAR(MSL_VECTOR_TYPES)
#undef MSL_VECTOR_TYPES
typedef metal::__bool_vector<2> bool2;
typedef metal::__bool_vector<3> bool3;
typedef metal::__bool_vector<4> bool4;

namespace metal {

#define MSL_USE_VECTORS(T) \
  using ::T##2;            \
  using ::T##3;            \
  using ::T##4;
MSL_EACH_VECTOR_SCALAR(MSL_USE_VECTORS)
MSL_USE_VECTORS(bool)
#undef MSL_USE_VECTORS

template <typename T, int N> struct __vector_type : __identity<vec<T, N>> {};
template <int N> struct __vector_type<bool, N> : __identity<__bool_vector<N>> {};

}  // namespace metal
