// The normal distribution's density and distribution function, float32.
//
// MSL has no erf, and 1 + erf(x) cancels for x < 0 where GELU needs it most.
// exp is precise::, as the plain name is a fast variant at run time.
#ifndef MLX_GLU_NORMAL_H
#define MLX_GLU_NORMAL_H

namespace mlx_glu {

inline float normal_pdf(float x) {
  float m = metal::min(metal::abs(x), 15.0f); // exp(-m * m / 2) is 0 there
  float square = m * m;
  float e = metal::precise::exp(-0.5f * square);
  float error = metal::fma(m, m, -square);
  return 0.3989423f * metal::fma(-0.5f * error, e, e);
}

// (1 + erf(x / sqrt(2))) / 2 without its cancellation.
// Both polynomials are our fits against float64 erfc, relative error 2e-8.
inline float normal_cdf(float x) {
  float a = metal::abs(x);
  if (a < 1.0f) {
    float s = x * x;
    float p = -7.5303005e-6f;
    p = metal::fma(p, s, 1.1314363e-4f);
    p = metal::fma(p, s, -1.1859847e-3f);
    p = metal::fma(p, s, 9.9731712e-3f);
    p = metal::fma(p, s, -6.6490330e-2f);
    p = metal::fma(p, s, 3.9894229e-1f);
    return metal::fma(p, x, 0.5f);
  }
  float t = 1.0f / (a + 3.0f); // upper tail = pdf * t * polynomial in t
  float p = 717.26117f;
  p = metal::fma(p, t, -730.463f);
  p = metal::fma(p, t, 175.94547f);
  p = metal::fma(p, t, 7.5862484f);
  p = metal::fma(p, t, 19.9246f);
  p = metal::fma(p, t, 7.90148f);
  p = metal::fma(p, t, 3.0027516f);
  p = metal::fma(p, t, 0.99996793f);
  float tail = normal_pdf(a) * (p * t);
  return x < 0.0f ? tail : 1.0f - tail;
}

} // namespace mlx_glu

#endif
