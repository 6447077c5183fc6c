// uniform<T> (a value that is the same in all threads) and os_log (says nothing here).
#pragma once

namespace metal {

template <typename T> struct uniform {
  T value;
  constexpr uniform() = default;
  MSL_FN constexpr uniform(T x) : value(x) {}
  MSL_FN constexpr operator T() const { return value; }
};
template <typename T> MSL_FN constexpr uniform<T> make_uniform(T x) {
  return uniform<T>(x);
}

#define MSL_UNIFORM_OPERATOR(op)                                              \
  template <typename T>                                                       \
  MSL_FN constexpr uniform<T> operator op(uniform<T> a, uniform<T> b) {       \
    return uniform<T>((T)((T)a op (T)b));                                     \
  }
MSL_UNIFORM_OPERATOR(+)
MSL_UNIFORM_OPERATOR(-)
MSL_UNIFORM_OPERATOR(*)
MSL_UNIFORM_OPERATOR(/)
MSL_UNIFORM_OPERATOR(%)
#undef MSL_UNIFORM_OPERATOR

struct os_log {
  template <typename A, typename B> MSL_FN constexpr os_log(A, B) {}
  template <typename... A> MSL_FN void log_debug(A...) const {}
};

}  // namespace metal
