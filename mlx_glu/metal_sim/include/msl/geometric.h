// Geometric functions of float and half vectors.
#pragma once

namespace metal {

template <typename A, typename B, typename V = __float_vector<A, B>>
MSL_FN __element<V> dot(A a0, B b0) {
  V a = __spread<V>(a0), b = __spread<V>(b0);
  __element<V> sum = a[0] * b[0];
  MSL_EACH(i, __size<V> - 1) sum += a[i + 1] * b[i + 1];
  return sum;
}
template <typename A, typename V = __float_vector<A>>
MSL_FN __element<V> length_squared(A a) {
  return dot(a, a);
}
template <typename A, typename V = __float_vector<A>>
MSL_FN __element<V> length(A a) {
  return sqrt(dot(a, a));
}
template <typename A, typename B, typename V = __float_vector<A, B>>
MSL_FN __element<V> distance_squared(A a, B b) {
  return length_squared(__spread<V>(a) - __spread<V>(b));
}
template <typename A, typename B, typename V = __float_vector<A, B>>
MSL_FN __element<V> distance(A a, B b) {
  return length(__spread<V>(a) - __spread<V>(b));
}
template <typename A, typename V = __float_vector<A>> MSL_FN V normalize(A a0) {
  V a = a0;
  return a * rsqrt(dot(a, a));
}
template <typename A, typename B, typename V = __float_vector<A, B>>
MSL_FN V cross(A a0, B b0) {
  static_assert(__size<V> == 3, "cross takes vectors of 3 elements");
  V a = a0, b = b0;
  return a.yzx * b.zxy - a.zxy * b.yzx;
}
template <typename A, typename B, typename V = __float_vector<A, B>>
MSL_FN V reflect(A incident0, B normal0) {
  V incident = incident0, normal = normal0;
  return incident - (V)(2 * dot(normal, incident)) * normal;
}

}  // namespace metal
