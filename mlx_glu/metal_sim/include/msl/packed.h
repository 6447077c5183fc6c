// Packed vectors (aligned as their element, without padding) and array<T, N>.
#pragma once

namespace metal {

template <typename T, int N> struct __packed : __elements_of<T, N> {
  using Vector = vec<T, N>;
  using __elements_of<T, N>::v;

  __packed() = default;
  MSL_FN __packed(Vector a) {
    MSL_EACH(i, N) v[i] = a[i];
  }
  template <typename... A, enable_if_t<sizeof...(A) == N && (N > 1), int> = 0>
  MSL_FN __packed(A... a) {
    int i = 0;
    ((v[i++] = (T)a), ...);
  }

  MSL_FN operator Vector() const {
    Vector a;
    MSL_EACH(i, N) a[i] = v[i];
    return a;
  }
  MSL_FN T operator[](int i) const { return v[i]; }
  MSL_FN T& operator[](int i) { return v[i]; }

#define MSL_PACKED_OPERATOR(op)                                          \
  MSL_FN friend Vector operator op(__packed a, Vector b) {               \
    return Vector(a) op b;                                               \
  }                                                                      \
  MSL_FN friend Vector operator op(Vector a, __packed b) {               \
    return a op Vector(b);                                               \
  }                                                                      \
  MSL_FN friend Vector operator op(__packed a, __packed b) {             \
    return Vector(a) op Vector(b);                                       \
  }                                                                      \
  MSL_FN __packed& operator op##=(Vector b) {                            \
    return *this = Vector(*this) op b;                                   \
  }
  MSL_PACKED_OPERATOR(+)
  MSL_PACKED_OPERATOR(-)
  MSL_PACKED_OPERATOR(*)
  MSL_PACKED_OPERATOR(/)
#undef MSL_PACKED_OPERATOR
  MSL_FN friend Vector operator-(__packed a) { return -Vector(a); }
};
template <typename T, int N> struct __vector<__packed<T, N>> {
  using element = T;
  static constexpr int size = N;
};

template <typename T, size_t N> struct array {
  T elements[N];

  MSL_FN constexpr T& operator[](size_t i) { return elements[i]; }
  MSL_FN constexpr const T& operator[](size_t i) const { return elements[i]; }
  MSL_FN constexpr size_t size() const { return N; }
  MSL_FN constexpr thread T* data() { return elements; }
  MSL_FN constexpr const thread T* data() const { return elements; }
};

}  // namespace metal

#ifdef MSL_LINT
// No method can be called on an object in device memory, so a class would not do.
#define MSL_PACKED_TYPES(T) \
  typedef T##2 packed_##T##2; \
  typedef T##3 packed_##T##3; \
  typedef T##4 packed_##T##4;
#else
#define MSL_PACKED_TYPES(T)                  \
  typedef metal::__packed<T, 2> packed_##T##2; \
  typedef metal::__packed<T, 3> packed_##T##3; \
  typedef metal::__packed<T, 4> packed_##T##4;
#endif
MSL_EACH_VECTOR_SCALAR(MSL_PACKED_TYPES)
#undef MSL_PACKED_TYPES
