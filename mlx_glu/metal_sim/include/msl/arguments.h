// How a function takes vectors: element by element, a scalar stands for all elements.
#pragma once

namespace metal {

// A packed vector counts as the vector it converts to.
template <typename A> struct __argument : __identity<A> {};
template <typename T, int N>
struct __argument<__packed<T, N>> : __identity<vec<T, N>> {};

template <typename...> struct __first_vector : __identity<void> {};
template <typename A, typename... Rest>
struct __first_vector<A, Rest...>
    : conditional_t<__is_vector<A>, __argument<A>, __first_vector<Rest...>> {};

template <typename V, typename A>
constexpr bool __fits =
    is_same_v<typename __argument<A>::type, V> || is_arithmetic_v<A>;
template <typename V>
constexpr bool __is_number_vector =
    __is_vector<V> && is_arithmetic_v<__element<V>> && !__is_class(V);
template <typename V>
constexpr bool __is_float_vector =
    __is_vector<V> && __is_one_of<__element<V>, float, half>;
template <typename V>
constexpr bool __is_integer_vector =
    __is_number_vector<V> && is_integral_v<__element<V>>;

// The vector type of a call; no type unless every argument is that or a scalar.
template <typename V, typename... A>
using __joined = enable_if_t<__is_number_vector<V> && (__fits<V, A> && ...), V>;
template <typename... A>
using __number_vector = __joined<typename __first_vector<A...>::type, A...>;
template <typename... A>
using __float_vector =
    enable_if_t<__is_float_vector<typename __first_vector<A...>::type>,
                __number_vector<A...>>;
template <typename... A>
using __integer_vector =
    enable_if_t<__is_integer_vector<typename __first_vector<A...>::type>,
                __number_vector<A...>>;

template <typename V, typename A> MSL_FN V __spread(A a) {
  if constexpr (is_arithmetic_v<A>) {
    return (V)(__element<V>)a;
  } else {
    return a;
  }
}

}  // namespace metal

// The vector overload of a function of one, two or three scalars.
#define MSL_VECTOR_1(name, Kind)                                    \
  template <typename A, typename V = Kind<A>> MSL_FN V name(A a0) { \
    V a = __spread<V>(a0), r;                                       \
    MSL_EACH(i, __size<V>) r[i] = name(a[i]);                       \
    return r;                                                       \
  }
#define MSL_VECTOR_2(name, Kind)                           \
  template <typename A, typename B, typename V = Kind<A, B>> \
  MSL_FN V name(A a0, B b0) {                              \
    V a = __spread<V>(a0), b = __spread<V>(b0), r;         \
    MSL_EACH(i, __size<V>) r[i] = name(a[i], b[i]);        \
    return r;                                              \
  }
#define MSL_VECTOR_3(name, Kind)                                              \
  template <typename A, typename B, typename C, typename V = Kind<A, B, C>>   \
  MSL_FN V name(A a0, B b0, C c0) {                                           \
    V a = __spread<V>(a0), b = __spread<V>(b0), c = __spread<V>(c0), r;       \
    MSL_EACH(i, __size<V>) r[i] = name(a[i], b[i], c[i]);                     \
    return r;                                                                 \
  }
