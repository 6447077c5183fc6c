// Math functions. As in MSL there are overloads for float and half: a call with an int
// is ambiguous. half is computed in float and rounded once.
#pragma once

namespace metal {

#define MSL_MATH_1(name, value)      \
  MSL_FN float name(float x) {       \
    return value;                    \
  }                                  \
  MSL_FN half name(half x0) {        \
    float x = x0;                    \
    return (half)(value);            \
  }                                  \
  MSL_VECTOR_1(name, __float_vector)
#define MSL_MATH_2(name, value)         \
  MSL_FN float name(float x, float y) { \
    return value;                       \
  }                                     \
  MSL_FN half name(half x0, half y0) {  \
    float x = x0, y = y0;               \
    return (half)(value);               \
  }                                     \
  MSL_VECTOR_2(name, __float_vector)
#define MSL_MATH_3(name, value)                  \
  MSL_FN float name(float x, float y, float z) { \
    return value;                                \
  }                                              \
  MSL_FN half name(half x0, half y0, half z0) {  \
    float x = x0, y = y0, z = z0;                \
    return (half)(value);                        \
  }                                              \
  MSL_VECTOR_3(name, __float_vector)

// Exponentials, logarithms and powers
MSL_MATH_1(exp, __builtin_expf(x))
MSL_MATH_1(exp2, __builtin_exp2f(x))
MSL_MATH_1(exp10, __builtin_powf(10.0f, x))
MSL_MATH_1(log, __builtin_logf(x))
MSL_MATH_1(log2, __builtin_log2f(x))
MSL_MATH_1(log10, __builtin_log10f(x))
MSL_MATH_2(pow, __builtin_powf(x, y))
MSL_MATH_2(powr, __builtin_powf(x, y))
MSL_MATH_1(sqrt, __builtin_sqrtf(x))
MSL_MATH_1(rsqrt, (1.0f / __builtin_sqrtf(x)))

// Trigonometry. The literals below are long double, as plain ones are float.
MSL_FN float __sinpi(float x) {
  double turn = x - 2.0f * __builtin_rintf(0.5f * x);
  return (float)__builtin_sin((double)3.14159265358979323846L * turn);
}
MSL_FN float __cospi(float x) {
  double turn = x - 2.0f * __builtin_rintf(0.5f * x);
  return (float)__builtin_cos((double)3.14159265358979323846L * turn);
}
MSL_MATH_1(sin, __builtin_sinf(x))
MSL_MATH_1(cos, __builtin_cosf(x))
MSL_MATH_1(tan, __builtin_tanf(x))
MSL_MATH_1(asin, __builtin_asinf(x))
MSL_MATH_1(acos, __builtin_acosf(x))
MSL_MATH_1(atan, __builtin_atanf(x))
MSL_MATH_2(atan2, __builtin_atan2f(x, y))
MSL_MATH_1(sinh, __builtin_sinhf(x))
MSL_MATH_1(cosh, __builtin_coshf(x))
MSL_MATH_1(tanh, __builtin_tanhf(x))
MSL_MATH_1(asinh, __builtin_asinhf(x))
MSL_MATH_1(acosh, __builtin_acoshf(x))
MSL_MATH_1(atanh, __builtin_atanhf(x))
MSL_MATH_1(sinpi, __sinpi(x))
MSL_MATH_1(cospi, __cospi(x))
MSL_MATH_1(tanpi, (__sinpi(x) / __cospi(x)))

// Rounding and remainders
MSL_MATH_1(floor, __builtin_floorf(x))
MSL_MATH_1(ceil, __builtin_ceilf(x))
MSL_MATH_1(trunc, __builtin_truncf(x))
MSL_MATH_1(rint, __builtin_rintf(x))
MSL_MATH_1(round, __builtin_roundf(x))
MSL_MATH_2(fmod, __builtin_fmodf(x, y))
MSL_MATH_2(divide, (x / y))

// fract stays below 1, also after rounding.
MSL_FN float fract(float x) {
  return __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f);
}
MSL_FN half fract(half x) {
  return (half)__builtin_fminf((float)x - __builtin_floorf(x), 0x1.ffcp-1f);
}
MSL_VECTOR_1(fract, __float_vector)

// Comparisons, signs and products
MSL_FN float __median(float x, float y, float z) {
  float low = __builtin_fminf(x, y);
  float high = __builtin_fmaxf(x, y);
  return __builtin_fmaxf(low, __builtin_fminf(high, z));
}
MSL_MATH_1(fabs, __builtin_fabsf(x))
MSL_MATH_2(fmin, __builtin_fminf(x, y))
MSL_MATH_2(fmax, __builtin_fmaxf(x, y))
MSL_MATH_3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z)))
MSL_MATH_3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))
MSL_MATH_3(fmedian3, __median(x, y, z))
MSL_MATH_2(copysign, __builtin_copysignf(x, y))
MSL_MATH_2(fdim, __builtin_fdimf(x, y))
MSL_MATH_3(fma, __builtin_fmaf(x, y, z))

// The float or half next to x in the direction of y
MSL_FN float nextafter(float x, float y) { return __builtin_nextafterf(x, y); }
MSL_FN half nextafter(half x, half y) {
  if (x != x || y != y) return x + y;
  if (x == y) return y;
  short bits = as_type<short>(x);
  if (x == 0) return as_type<half>((short)(y > 0 ? 1 : 0x8001));
  return as_type<half>((short)(bits + ((x < y) == (x > 0) ? 1 : -1)));
}
MSL_VECTOR_2(nextafter, __float_vector)

// Mantissas and exponents
MSL_FN int ilogb(float x) { return __builtin_ilogbf(x); }
MSL_FN int ilogb(half x) { return __builtin_ilogbf(x); }
MSL_FN float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
MSL_FN half ldexp(half x, int e) { return (half)__builtin_ldexpf(x, e); }
MSL_FN float frexp(float x, thread int& e) { return __builtin_frexpf(x, &e); }
MSL_FN half frexp(half x, thread int& e) { return (half)__builtin_frexpf(x, &e); }
template <typename T, enable_if_t<__is_one_of<T, float, half>, int> = 0>
MSL_FN T modf(T x, thread T& whole) {
  whole = trunc(x);
  return copysign(__builtin_isinf((float)x) ? (T)0 : x - whole, x);
}
template <typename T, enable_if_t<__is_one_of<T, float, half>, int> = 0>
MSL_FN T sincos(T x, thread T& cosine) {
  cosine = cos(x);
  return sin(x);
}

}  // namespace metal
