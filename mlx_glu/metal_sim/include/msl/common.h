// min, max, clamp, abs and their kin. Overloads for each scalar type: a call that mixes
// int and float, or int and uint, is ambiguous as in MSL.
#pragma once

namespace metal {

#define MSL_EACH_INTEGER(DO) \
  DO(char)                   \
  DO(uchar)                  \
  DO(short)                  \
  DO(ushort)                 \
  DO(int)                    \
  DO(uint)                   \
  DO(long)                   \
  DO(ulong)

#define MSL_INTEGER_EXTREMES(T)                                         \
  MSL_FN constexpr T min(T a, T b) { return b < a ? b : a; }            \
  MSL_FN constexpr T max(T a, T b) { return a < b ? b : a; }            \
  MSL_FN constexpr T min3(T a, T b, T c) { return min(a, min(b, c)); }  \
  MSL_FN constexpr T max3(T a, T b, T c) { return max(a, max(b, c)); }  \
  MSL_FN constexpr T median3(T a, T b, T c) {                           \
    return max(min(a, b), min(max(a, b), c));                           \
  }                                                                     \
  MSL_FN constexpr T clamp(T x, T low, T high) { return min(max(x, low), high); } \
  MSL_FN constexpr T abs(T x) { return x < (T)0 ? (T)-x : x; }
MSL_EACH_INTEGER(MSL_INTEGER_EXTREMES)
#undef MSL_INTEGER_EXTREMES

#define MSL_FLOAT_EXTREMES(T)                                              \
  MSL_FN T min(T a, T b) { return fmin(a, b); }                            \
  MSL_FN T max(T a, T b) { return fmax(a, b); }                            \
  MSL_FN T min3(T a, T b, T c) { return fmin3(a, b, c); }                  \
  MSL_FN T max3(T a, T b, T c) { return fmax3(a, b, c); }                  \
  MSL_FN T median3(T a, T b, T c) { return fmedian3(a, b, c); }            \
  MSL_FN T clamp(T x, T low, T high) { return fmin(fmax(x, low), high); }  \
  MSL_FN T abs(T x) { return fabs(x); }
MSL_FLOAT_EXTREMES(float)
MSL_FLOAT_EXTREMES(half)
#undef MSL_FLOAT_EXTREMES

MSL_VECTOR_2(min, __number_vector)
MSL_VECTOR_2(max, __number_vector)
MSL_VECTOR_3(min3, __number_vector)
MSL_VECTOR_3(max3, __number_vector)
MSL_VECTOR_3(median3, __number_vector)
MSL_VECTOR_3(clamp, __number_vector)
MSL_VECTOR_1(abs, __number_vector)

MSL_FN float __smoothstep(float x, float y, float z) {
  float t = clamp((z - x) / (y - x), 0.0f, 1.0f);
  return t * t * (3.0f - 2.0f * t);
}
MSL_MATH_1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
MSL_MATH_1(sign, (x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == x ? x : 0.0f))
MSL_MATH_2(step, (y < x ? 0.0f : 1.0f))
MSL_MATH_3(mix, (x + (y - x) * z))
MSL_MATH_3(smoothstep, __smoothstep(x, y, z))

}  // namespace metal
