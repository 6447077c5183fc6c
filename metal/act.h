// The GLU family as functors: h = phi(gate) * psi(up), float32 in and out.
//
// Each alias at the end is one row of mlx_glu/variants.py and has
//   fwd(gate, up)     h
//   d_gate(gate, up)  dh/dgate
//   d_up(gate, up)    dh/dup
// Parameters are template arguments: the bits of a float, as Variant.msl spells
// them, so their values live in the table alone. A bound of a clamp and the
// corner of a ReLU have gradient 0, as in MLX. Comparisons let a NaN through.
// exp and tanh are precise::, as the plain names are fast variants at run time.
#ifndef MLX_GLU_ACT_H
#define MLX_GLU_ACT_H

#include "normal.h"

namespace mlx_glu {

// sigmoid(x + dx). exp turns an absolute error of its argument into a relative
// error, so what x lost to rounding travels along as dx.
inline float sigmoid(float x, float dx = 0.0f) {
  float e = metal::precise::exp(-metal::abs(x));
  e = metal::fma(x < 0.0f ? dx : -dx, e, e);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// sigmoid(slope * g); the clamp keeps the product finite.
inline float scaled_sigmoid(float slope, float g) {
  g = metal::clamp(g, -1e30f, 1e30f);
  float x = slope * g;
  return sigmoid(x, metal::fma(slope, g, -x));
}

inline float silu(float slope, float g) { return g * scaled_sigmoid(slope, g); }

inline float silu_grad(float slope, float g) {
  float s = scaled_sigmoid(slope, g);
  return s + slope * g * s * scaled_sigmoid(-slope, g);
}

// (1 + tanh(z)) / 2 = sigmoid(2 z) with 2 z = g * (A + B * g * g). Beyond 12 the
// sigmoid is 0 or 1 to the last bit.
inline float gelu_tanh_gate(float g) {
  const float A = 1.5957692f, A_error = -4.534068e-8f, B = 0.071354814f;
  g = metal::clamp(g, -12.0f, 12.0f);
  float square = g * g;
  float s = metal::fma(B, square, A);
  float s_error = metal::fma(B, square, A - s) + A_error;
  s_error = metal::fma(B, metal::fma(g, g, -square), s_error);
  float x = g * s;
  return sigmoid(x, metal::fma(g, s, -x) + g * s_error);
}

struct Identity {
  static float value(float x) { return x; }
  static float grad(float) { return 1.0f; }
};

struct Relu {
  static float value(float x) { return x < 0.0f ? 0.0f : x; }
  static float grad(float x) { return x > 0.0f ? 1.0f : 0.0f; }
};

struct Relu2 {
  static float value(float x) { return Relu::value(x) * Relu::value(x); }
  static float grad(float x) { return 2.0f * Relu::value(x); }
};

struct Sigmoid {
  static float value(float x) { return sigmoid(x); }
  static float grad(float x) { return sigmoid(x) * sigmoid(-x); }
};

struct Tanh {
  static float value(float x) { return metal::precise::tanh(x); }
  static float grad(float x) { return 4.0f * Sigmoid::grad(2.0f * x); }
};

struct Gelu {
  static float value(float x) { return x * normal_cdf(x); }
  static float grad(float x) { return normal_cdf(x) + x * normal_pdf(x); }
};

struct GeluTanh {
  static float value(float x) { return x * gelu_tanh_gate(x); }
  static float grad(float x) {
    float s = gelu_tanh_gate(x), m = metal::clamp(x, -12.0f, 12.0f);
    return s + m * s * (1.0f - s) * metal::fma(0.21406444f, m * m, 1.5957692f);
  }
};

template <uint beta>
struct Silu {
  static float value(float x) { return silu(as_type<float>(beta), x); }
  static float grad(float x) { return silu_grad(as_type<float>(beta), x); }
};

template <uint alpha, uint limit>
struct SiluClamped {
  static float value(float x) {
    float bound = as_type<float>(limit);
    return silu(as_type<float>(alpha), x > bound ? bound : x);
  }
  static float grad(float x) {
    bool inside = x < as_type<float>(limit);
    return inside ? silu_grad(as_type<float>(alpha), x) : 0.0f;
  }
};

template <uint limit>
struct SiluClampPost {
  static float value(float x) {
    float y = silu(1.0f, x), bound = as_type<float>(limit);
    return y > bound ? bound : y;
  }
  static float grad(float x) {
    bool inside = silu(1.0f, x) < as_type<float>(limit);
    return inside ? silu_grad(1.0f, x) : 0.0f;
  }
};

template <uint limit, uint offset>
struct Clip {
  static float value(float x) {
    float bound = as_type<float>(limit);
    float y = x > bound ? bound : (x < -bound ? -bound : x);
    return y + as_type<float>(offset);
  }
  static float grad(float x) {
    return metal::abs(x) < as_type<float>(limit) ? 1.0f : 0.0f;
  }
};

template <typename Phi, typename Psi>
struct Gated {
  static float fwd(float g, float u) { return Phi::value(g) * Psi::value(u); }
  static float d_gate(float g, float u) { return Phi::grad(g) * Psi::value(u); }
  static float d_up(float g, float u) { return Phi::value(g) * Psi::grad(u); }
};

using Glu = Gated<Sigmoid, Identity>;
using Bilinear = Gated<Identity, Identity>;
using Reglu = Gated<Relu, Identity>;
using Geglu = Gated<Gelu, Identity>;
using GegluTanh = Gated<GeluTanh, Identity>;
template <uint beta>
using Swiglu = Gated<Silu<beta>, Identity>;
template <uint alpha, uint limit, uint offset>
using SwigluClamped = Gated<SiluClamped<alpha, limit>, Clip<limit, offset>>;
template <uint limit>
using SwigluClampPost = Gated<SiluClampPost<limit>, Clip<limit, 0u>>;
using Gtu = Gated<Sigmoid, Tanh>;
using Drelu = Gated<Relu, Relu>;
using Relu2Glu = Gated<Relu2, Identity>;

} // namespace mlx_glu

#endif
