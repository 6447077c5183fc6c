// Tests of floats, any, all and select.
#pragma once

namespace metal {

#define MSL_TEST(name, test)                                         \
  MSL_FN bool name(float x) { return test; }                         \
  MSL_FN bool name(half x) { return name((float)x); }                \
  template <typename A, typename V = __float_vector<A>>              \
  MSL_FN __bool_vector<__size<V>> name(A a) {                        \
    V v = a;                                                         \
    __bool_vector<__size<V>> r;                                      \
    MSL_EACH(i, __size<V>) r[i] = name(v[i]);                        \
    return r;                                                        \
  }
MSL_TEST(isnan, __builtin_isnan(x))
MSL_TEST(isinf, __builtin_isinf(x))
MSL_TEST(isfinite, __builtin_isfinite(x))
MSL_TEST(isnormal, __builtin_isnormal(x))
MSL_TEST(signbit, __builtin_signbit(x))
#undef MSL_TEST

MSL_FN bool isunordered(float x, float y) { return __builtin_isunordered(x, y); }
MSL_FN bool isunordered(half x, half y) { return isunordered((float)x, (float)y); }
MSL_FN bool isordered(float x, float y) { return !isunordered(x, y); }
MSL_FN bool isordered(half x, half y) { return !isunordered(x, y); }

// A condition is a boolN or the mask that a comparison of vectors gives.
template <typename C>
constexpr bool __is_condition =
    __is_vector<C> && (__is_class(C) || is_integral_v<__element<C>>);

MSL_FN constexpr bool any(bool b) { return b; }
MSL_FN constexpr bool all(bool b) { return b; }
template <typename C, enable_if_t<__is_condition<C>, int> = 0> MSL_FN bool any(C c) {
  bool r = false;
  MSL_EACH(i, __size<C>) r |= c[i] != 0;
  return r;
}
template <typename C, enable_if_t<__is_condition<C>, int> = 0> MSL_FN bool all(C c) {
  bool r = true;
  MSL_EACH(i, __size<C>) r &= c[i] != 0;
  return r;
}

// b where the condition holds, else a
template <typename T, enable_if_t<is_arithmetic_v<T>, int> = 0>
MSL_FN constexpr T select(T a, T b, bool c) {
  return c ? b : a;
}
template <typename A, typename B, typename C, typename V = __number_vector<A, B>>
MSL_FN V select(A a0, B b0, C c0) {
  V a = __spread<V>(a0), b = __spread<V>(b0), r;
  __bool_vector<__size<V>> c(c0);
  MSL_EACH(i, __size<V>) r[i] = c[i] ? b[i] : a[i];
  return r;
}

}  // namespace metal
