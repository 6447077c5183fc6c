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

// Horner's rule, highest power first.
template <int n>
float horner(const thread float (&c)[n], float x) {
  float p = c[0];
  for (int i = 1; i < n; i++) {
    p = metal::fma(p, x, c[i]);
  }
  return p;
}

// (1 + erf(x / sqrt(2))) / 2 without its cancellation.
// Both polynomials are our fits against float64 erfc, relative error 2e-8.
inline float normal_cdf(float x) {
  float a = metal::abs(x);
  if (a < 1.0f) {
    const float c[6] = {-7.5303005e-6f, 1.1314363e-4f,  -1.1859847e-3f,
                        9.9731712e-3f,  -6.6490330e-2f, 3.9894229e-1f};
    return metal::fma(horner(c, x * x), x, 0.5f);
  }
  float t = 1.0f / (a + 3.0f); // upper tail = pdf * t * polynomial in t
  const float c[8] = {717.26117f, -730.463f, 175.94547f, 7.5862484f,
                      19.9246f,   7.90148f,  3.0027516f, 0.99996793f};
  float tail = normal_pdf(a) * (horner(c, t) * t);
  return x < 0.0f ? tail : 1.0f - tail;
}

} // namespace mlx_glu

#endif
