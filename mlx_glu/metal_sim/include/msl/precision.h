// metal::precise and metal::fast. Both are libm here; MSL promises only a few ulp of
// the fast ones.
#pragma once

#define MSL_EACH_MATH_NAME(DO)                                              \
  DO(abs) DO(acos) DO(acosh) DO(asin) DO(asinh) DO(atan) DO(atan2)          \
  DO(atanh) DO(ceil) DO(clamp) DO(copysign) DO(cos) DO(cosh) DO(cospi)      \
  DO(divide) DO(exp) DO(exp10) DO(exp2) DO(fabs) DO(fdim) DO(floor) DO(fma) \
  DO(fmax) DO(fmax3) DO(fmedian3) DO(fmin) DO(fmin3) DO(fmod) DO(fract)     \
  DO(frexp) DO(ilogb) DO(ldexp) DO(log) DO(log10) DO(log2) DO(max) DO(max3) \
  DO(median3) DO(min) DO(min3) DO(mix) DO(modf) DO(nextafter) DO(pow)       \
  DO(powr) DO(rint) DO(round) DO(rsqrt) DO(saturate) DO(sign) DO(sin)       \
  DO(sincos) DO(sinh) DO(sinpi) DO(smoothstep) DO(sqrt) DO(step) DO(tan)    \
  DO(tanh) DO(tanpi) DO(trunc)
#define MSL_USE_METAL(name) using metal::name;

namespace metal {
namespace precise {
MSL_EACH_MATH_NAME(MSL_USE_METAL)
}
namespace fast {
MSL_EACH_MATH_NAME(MSL_USE_METAL)
}
}  // namespace metal
