// The compiler builtins that MLX's bf16_math.h calls by name.
#pragma once

#define MSL_EACH_BUILTIN_1(DO)                                                     \
  DO(exp) DO(exp2) DO(exp10) DO(log) DO(log2) DO(log10) DO(sin) DO(cos) DO(tan)    \
  DO(asin) DO(acos) DO(atan) DO(sinh) DO(cosh) DO(tanh) DO(asinh) DO(acosh)        \
  DO(atanh) DO(sinpi) DO(cospi) DO(tanpi) DO(sqrt) DO(rsqrt) DO(floor) DO(ceil)    \
  DO(trunc) DO(rint) DO(round) DO(fabs) DO(fract)
#define MSL_EACH_BUILTIN_2(DO) \
  DO(pow) DO(powr) DO(atan2) DO(fmod) DO(fmin) DO(fmax) DO(divide)
#define MSL_EACH_BUILTIN_3(DO) DO(fmin3) DO(fmax3) DO(fmedian3)
#define MSL_EACH_BUILTIN_SIMD(DO)                                             \
  DO(sum) DO(product) DO(min) DO(max) DO(prefix_inclusive_sum)                \
  DO(prefix_exclusive_sum) DO(prefix_inclusive_product)                       \
  DO(prefix_exclusive_product)
#define MSL_EACH_BUILTIN_SHUFFLE(DO)                                          \
  DO(broadcast) DO(shuffle) DO(shuffle_up) DO(shuffle_down) DO(shuffle_xor)   \
  DO(shuffle_rotate_up) DO(shuffle_rotate_down)

namespace metal {

// The last argument of these selects fast or precise.
#define MSL_BUILTIN_1(name) \
  MSL_FN float __metal_##name(float x, bool) { return name(x); }
#define MSL_BUILTIN_2(name) \
  MSL_FN float __metal_##name(float x, float y, bool) { return name(x, y); }
#define MSL_BUILTIN_3(name)                                      \
  MSL_FN float __metal_##name(float x, float y, float z, bool) { \
    return name(x, y, z);                                        \
  }
MSL_EACH_BUILTIN_1(MSL_BUILTIN_1)
MSL_EACH_BUILTIN_2(MSL_BUILTIN_2)
MSL_EACH_BUILTIN_3(MSL_BUILTIN_3)
MSL_FN float __metal_fma(float x, float y, float z) { return fma(x, y, z); }
MSL_FN float __metal_ldexp(float x, int e, bool) { return ldexp(x, e); }
MSL_FN float __metal_frexp(float x, thread int* e) { return frexp(x, *e); }
MSL_FN float __metal_frexp(float x, thread int& e) { return frexp(x, e); }
MSL_FN float __metal_nextafter(float x, float y) { return nextafter(x, y); }

#define MSL_BUILTIN_SIMD(name)                                \
  MSL_CONVERGENT MSL_FN float __metal_simd_##name(float x) {  \
    return simd_##name(x);                                    \
  }
#define MSL_BUILTIN_SHUFFLE(name)                                        \
  MSL_CONVERGENT MSL_FN ushort __metal_simd_##name(ushort x, ushort k) { \
    return simd_##name(x, k);                                            \
  }
#define MSL_BUILTIN_FILL(name)                                                    \
  MSL_CONVERGENT MSL_FN ushort __metal_simd_##name(ushort x, ushort fill, ushort k, \
                                                   ushort modulo) {               \
    return simd_##name(x, fill, k, modulo);                                       \
  }
MSL_EACH_BUILTIN_SIMD(MSL_BUILTIN_SIMD)
MSL_EACH_BUILTIN_SHUFFLE(MSL_BUILTIN_SHUFFLE)
MSL_BUILTIN_FILL(shuffle_and_fill_up)
MSL_BUILTIN_FILL(shuffle_and_fill_down)
float __metal_simd_xor(float);  // never defined: there is no xor of floats
MSL_FN ushort __metal_get_simdgroup_size(ushort) { return 32; }
MSL_FN ushort __metal_get_thread_index_in_simdgroup(ushort) { return __msl_lane(); }

}  // namespace metal
