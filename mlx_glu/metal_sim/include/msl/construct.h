// Constructors and casts that clang has no spelling for; desugaring inserts them.
#pragma once

namespace metal {

template <typename V, typename A>
MSL_FN constexpr void __append(V& v, int& i, A a) {
  if constexpr (__is_vector<A>) {
    MSL_EACH(k, __size<A>) v[i++] = (__element<V>)a[k];
  } else {
    v[i++] = (__element<V>)a;
  }
}

// float4(a, bc, d): MSL's vector constructors.
template <typename V> MSL_FN constexpr V __msl_make() { return V{}; }

template <typename V, typename A> MSL_FN constexpr V __msl_make(A a) {
  if constexpr (is_same_v<A, V>) {
    return a;
  } else if constexpr (__is_vector<A>) {
    static_assert(__size<A> == __size<V>, "a vector conversion needs equal lengths");
    V v{};
    MSL_EACH(i, __size<V>) v[i] = (__element<V>)a[i];
    return v;
  } else if constexpr (__is_class(A)) {
    return a;
  } else {
    return (V)(__element<V>)a;
  }
}

template <typename V, typename A, typename B, typename... Rest>
MSL_FN constexpr V __msl_make(A a, B b, Rest... rest) {
  static_assert(__size<A> + __size<B> + (0 + ... + __size<Rest>) == __size<V>,
                "wrong number of vector components");
  V v{};
  int i = 0;
  __append(v, i, a);
  __append(v, i, b);
  (__append(v, i, rest), ...);
  return v;
}

// static_cast, with the one conversion of MSL that clang refuses: half to bfloat.
template <typename To, typename From, enable_if_t<!is_reference_v<To>, int> = 0>
MSL_FN constexpr To __msl_static_cast(From x) {
  if constexpr (is_same_v<remove_cv_t<To>, bfloat> && is_same_v<From, half>) {
    return (bfloat)(float)x;
  } else {
    return static_cast<To>(x);
  }
}
template <typename To, typename From, enable_if_t<is_reference_v<To>, int> = 0>
MSL_FN constexpr To __msl_static_cast(From&& x) {
  return static_cast<To>(static_cast<From&&>(x));
}

}  // namespace metal

template <typename To, typename From> MSL_FN constexpr To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type<> needs types of the same size");
  return __builtin_bit_cast(To, x);
}
namespace metal {
using ::as_type;
}
