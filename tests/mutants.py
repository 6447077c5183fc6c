"""Broken kernels that the proof must notice, and what a case needs to notice them.

A mutant compiles and is wrong. Changes without an effect are not listed, nor those
that only round where stock rounds too.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple
from unittest import mock

import mlx.core as mx

from mlx_glu import jit, metal_source
from mlx_glu.dispatch import MAX_M
from mlx_glu.kernels import choose_tile
from mlx_glu.proof.cases import DENSE, FORMATS, Case
from mlx_glu.quantization import QuantizedWeight
from mlx_glu.variants import VARIANTS

# A file of metal/, then its mutants: what is wrong, how often the old text occurs if
# not once, and what a case needs; then old text (-) and new (+). Any white space
# stands for any other. What a case needs are keys of NEEDS or variants.
TABLE = r"""
matvec.h
  33 lanes: several_rounds
  - k += Tile::lanes * V
  + k += (Tile::lanes + 1) * V
  last columns dropped:
  - k < K; k +=
  + k + V < K; k +=
  columns past the end:
  - k < K; k +=
  + k <= K; k +=
  whole inverted: last_group_cut
  - ) == 0 };
  + ) != 0 };
  rows past the end: last_simdgroup_cut
  - metal::min(uint(R), N - first)
  + uint(R)
  simdgroup past the end: idle_simdgroup
  - first < N ? metal::min(uint(R), N - first) : 0
  + metal::min(uint(R), N - first)
  last row dropped:
  - N - first) : 0
  + N - first - 1) : 0
  simdgroups share rows: several_threadgroups
  - simdgroup) * R;
  + simdgroup / 2) * R;
  R off by one: whole_simdgroup
  - r < W::R; r++
  + r < W::R - 1; r++
  codes of row 0: rows
  - chunk[r].codes.value(i + j)
  + chunk[0].codes.value(i + j)
  scale of row 0: packed, rows
  - chunk[r].scaled(
  + chunk[0].scaled(
  codes of the first part: parts
  - value(i + j)
  + value(j)
  unit dropped: masked
  - * W::Codes::unit(i + j)
  +
  last column of a part dropped: vectors
  - j < S; j++) { dot
  + j < S - 1; j++) { dot
  last column of sum dropped: affine
  - j < S; j++) { sum
  + j < S - 1; j++) { sum
  sum of row 0 of x: rows_of_x, affine
  - dot, sum[m])
  + dot, sum[0])
  sum not reset: parts, affine
  - #pragma unroll for (int i = 0; i < V; i += S) { float part[M][S], sum[M];
  - #pragma unroll for (int m = 0; m < M; m++) {
  - read_floats<S>(x + ulong(m) * K + k + i, part[m]); }
  - norm.apply(part, k + i, y.squares); for (int m = 0; m < M; m++) { sum[m] =
  + float sum[M] = {}; for (int i = 0; i < V; i += S) { float part[M][S];
  + for (int m = 0; m < M; m++) { read_floats<S>(x + ulong(m) * K + k + i, part[m]); }
  + norm.apply(part, k + i, y.squares); for (int m = 0; m < M; m++) { sum[m] +=
  half accumulation: float32
  - y[m][r] += chunk[r].scaled(i, dot, sum[m]);
  + y[m][r] = half(y[m][r] + chunk[r].scaled(i, dot, sum[m]));
  half accumulation of half x: float16, many_columns
  - y[m][r] += chunk[r].scaled(i, dot, sum[m]);
  + y[m][r] = half(y[m][r] + chunk[r].scaled(i, dot, sum[m]));
  half products: float32
  - float dot =
  + half dot =
  half reduction: float32
  - simd_sum(y[m][r])
  + simd_sum(half(y[m][r]))
  share of one lane: several_lanes
  - metal::simd_sum(y[m][r])
  + y[m][r]
  wrong stride for row 2 of x: rows_of_x
  - ulong(m) * K
  + ulong(m) * (K - V)
  row 1 of x for all: rows_of_x
  - ulong(m) * K + k + i
  + k + i
  norm's weight of the first part: parts, normed
  - norm.apply(part, k + i,
  + norm.apply(part, k,
  up added to gate: gated
  - sum, y.second)
  + sum, y.first)
  M ignored: rows_of_x, fewer_than_max_M
  - if (M == m) {
  + if (m > 1) {
  last row of x dropped: rows_of_x
  - <Tile, m>(y,
  + <Tile, m - 1>(y,
  lanes of M and R exchanged: rows_of_x
  - uint(m * Tile::R + r)
  + uint(r * Tile::max_M + m)
  last row read twice: alone, rows_31
  - if (Tile::whole || uint(r) < rows) { a.load(first[r], n + r, k);
  + if (true) { a.load(first[r], n + metal::min(uint(r), rows - 1), k);
norm.h
  barrier removed: normed
  - threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  +
  barrier of a simdgroup: normed
  - threadgroup_barrier(
  + simdgroup_barrier(
  every simdgroup writes shares: normed
  - .simdgroup == 0
  + .simdgroup >= 0
  shares not written: normed
  - .simdgroup == 0
  + .simdgroup == 2
  eps dropped: normed
  - + as_type<float>(eps)
  +
  offset dropped: gemma
  - w[i] + offset
  + w[i]
  mean over N: normed, not_square
  - sum / Tile::K
  + sum / Tile::N
  root dropped: normed
  - metal::precise::rsqrt(
  + 1.0f / (
  squares of the weighted x: normed
  - squares[m] += x[m][i] * x[m][i];
  + squares[m] += x[m][i] * x[m][i] * w[i] * w[i];
  square of one column: normed
  - squares[m] += x
  + squares[m] = x
  sum over 31 lanes: normed, all_lanes
  - i < Tile::lanes &&
  + i < Tile::lanes - 1 &&
  squares of row 0: rows_of_x, normed
  - = squares[m];
  + = squares[0];
  shares of one row of x alone: rows_of_x, normed
  - 0; m < M &&
  + 0; m < 1 &&
  weight of the first columns: normed
  - (weight + k, w)
  + (weight, w)
gated.h
  sums not set:
  - sums = {};
  + sums;
  gate and up exchanged: asymmetric
  - Act::fwd(g, u)
  + Act::fwd(u, g)
  gate for up: gated
  - sums.second, M
  + sums.first, M
  up not normed: normed
  - u = scale * own_sum
  + u = own_sum
  biases exchanged: asymmetric, some_bias
  - g += at(gate_bias, n); u += at(up_bias, n);
  + g += at(up_bias, n); u += at(gate_bias, n);
  gate's bias dropped: gate_bias
  - g += at(gate_bias, n);
  +
  up's bias dropped: up_bias
  - u += at(up_bias, n);
  +
  bias normed: normed, gate_bias
  - g += at(
  + g += scale * at(
  bias of another row: gate_bias, several_threadgroups
  - at(gate_bias, n)
  + at(gate_bias, r)
  wrong index: rows_of_x, rows
  - ulong(m) * Tile::N + n
  + ulong(n) * M + m
  last row not stored:
  - r < rows
  + r + 1 < rows
  last row of x not stored:
  - m < M
  + m + 1 < M
  stored past the last row of x:
  - m < M && r < rows
  + r < rows
  rounded to half: float32
  - T(Act::fwd(g, u))
  + T(half(Act::fwd(g, u)))
projection.h
  sums not set:
  - sums = {};
  + sums;
  bias dropped: gate_bias
  - + at(bias, n)
  +
  residual dropped: residual
  - + at(residual, i)
  +
  residual of row 0: rows_of_x, residual
  - at(residual, i)
  + at(residual, n)
  residual in half: residual, float32
  - at(residual, i)
  + half(at(residual, i))
  wrong index: rows_of_x
  - ulong(m) * Tile::N + n
  + ulong(m) * (Tile::N - 1) + n
  last row not stored:
  - r < rows
  + r + 1 < rows
  stored past the last row of x:
  - m < M && r < rows
  + r < rows
dense.h
  rows of K - 1: dense, rows
  - row * Tile::K
  + row * (Tile::K - 1)
  first columns: dense
  - Tile::K + k
  + Tile::K
quant.h
  first words: packed
  - + k * F::bits / 32
  +
  words in steps of 32 columns: packed, chunk_below_32
  - k * F::bits / 32)
  + k / 32 * F::bits)
  wrong row of words: packed, rows
  - row * (K * F::bits / 32)
  + row * (K * F::bits / 32 - 1)
  scale of the next group: packed
  - k / F::group + i;
  + (k + V) / F::group + i;
  groups of row 0: packed, rows
  - row * (K / F::group) +
  +
  scale of a chunk's first group: groups
  - i / F::group % groups
  + 0
  a chunk's first group for all: groups
  - k / F::group + i;
  + k / F::group;
  bias dropped: affine
  - + bias[g] * sum
  +
  scale and bias exchanged: affine
  - scale[g] * dot + bias[g] * sum
  + bias[g] * dot + scale[g] * sum
  scale dropped: packed
  - scale[g] * dot
  + dot
  factor dropped: floating
  - * Codes::factor()
  +
  scale in half: affine, float32_parameters
  - return float(s);
  + return half(float(s));
  exponent off by one: mxfp
  - : s << 23
  + : (s + 1) << 23
  E8M0 zero: every_byte
  - s == 0 ? 0x400000u :
  +
  E4M3 scale too small: nvfp4
  - 256.0f *
  +
codes.h
  straddling bits dropped: straddling
  - low + bits > 32
  + false
  straddling bits shifted: straddling
  - (32 - low)
  + (31 - low)
  word past the chunk: straddling
  - low + bits > 32
  + low + bits >= 32
  mask of a bit more: straddling
  - (1u << bits) - 1u
  + (2u << bits) - 1u
  place in half a word: straddling
  - i * bits % 32
  + i * bits % 16
  nibble order x2: masked
  - (i % each * bits)
  + ((each - 1 - i % each) * bits)
  mask of a bit less: masked
  - ((1 << bits) - 1)
  + ((1 << bits) - 2)
  half words exchanged: masked
  - [i / each % 4]
  + [i / each % 4 ^ 1]
  first words for all: four_bits, chunk_of_32
  - [i / each / 4]
  + [0]
  unit of the first code: masked
  - 1.0f / float(1 << (i % each * bits))
  + 1.0f
  two words read for one: affine, single_words
  - words == 1
  + words == 0
  byte order: bytes
  - w[i / 4][i % 4]
  + w[i / 4][3 - i % 4]
  one word for two: bytes
  - (two.y)
  + (two.x)
  signed bytes x3: bytes
  - uchar4
  + char4
  E2M1 sign dropped: e2m1
  - two |= word << (12 - low) & 0x80008000u;
  +
  E2M1 mantissa dropped: e2m1
  - 0x0e000e00u
  + 0x0c000c00u
  E2M1 nibble order: e2m1
  - i % 4 * 4;
  + (3 - i % 4) * 4;
  E2M1 halves exchanged: e2m1
  - i % 8 < 4 ?
  + i % 8 > 3 ?
  E2M1 shifted the other way: e2m1
  - word << (9 - low)
  + word >> (9 - low)
  E2M1 factor: e2m1
  - 16384.0f
  + 8192.0f
  E4M3 sign dropped: mxfp8
  - | (word & 0x00800080u) << 8
  +
  E4M3 NaN a number: every_byte
  - | nan
  +
  E4M3 exponent cut: mxfp8
  - 0x007f007fu
  + 0x003f003fu
  E4M3 byte order: mxfp8
  - (i % 2 * 8)
  + (8 - i % 2 * 8)
  E4M3 halves exchanged: mxfp8
  - i % 4 < 2 ?
  + i % 4 > 1 ?
load.h
  absent input reads as 1: product, absent_bias
  - return 0.0f;
  + return 1.0f;
  four read at an odd tail: pointwise, odd
  - if (n % 4) { out
  + if (n < 0) { out
  four written at an odd tail: pointwise, odd
  - if (n % 4) { p[i]
  + if (n < 0) { p[i]
  one written too many: pointwise
  - in) { for (int i = 0; i < n;
  + in) { for (int i = 0; i <= n;
  x read in half: product, float32, K_of_fours
  - = float(four.v[j])
  + = half(float(four.v[j]))
  vector reversed: pointwise, fours
  - T(in[i]), T(in[i + 1])
  + T(in[i + 1]), T(in[i])
  words exchanged: words, even_words
  - w[i] = two.x; w[i + 1] = two.y;
  + w[i] = two.y; w[i + 1] = two.x;
  two words read of an odd number: odd_bits
  - if (n % 2)
  + if (n < 0)
glu_mul.metal
  gate and up exchanged: asymmetric
  - Act::fwd(gate[j], up[j])
  + Act::fwd(up[j], gate[j])
  last element dropped: fours
  - j < V; j++
  + j < V - 1; j++
  stored without the stride: fours, several_threads
  - h + i * V
  + h + i
  stored one to the right:
  - h + i * V
  + h + i * V + 1
  in half: float32
  - Act::fwd(gate[j], up[j])
  + half(Act::fwd(gate[j], up[j]))
glu_mul_vjp.metal
  gradients exchanged: asymmetric
  - by_gate, by_up)
  + by_up, by_gate)
  cotangent of gate dropped:
  - by_h[j] * Act::d_gate
  + Act::d_gate
  cotangent of up dropped:
  - by_h[j] * Act::d_up
  + Act::d_up
  cotangent of thread 0: several_threads
  - d + i * V
  + d
  gate's gradient for both: asymmetric
  - Act::d_up(
  + Act::d_gate(
pairs.h
  gate for up: separate, asymmetric
  - read_floats<V>(up + i
  + read_floats<V>(gate + i
  one gradient for both: separate
  - write_floats<V>(up + i
  + write_floats<V>(gate + i
  order of halves: concat, asymmetric
  - read_floats<V>(row + (gate_first ? 0 : N), g); read_floats<V>(row +
  - (gate_first ? N : 0), u)
  + read_floats<V>(row + (gate_first ? N : 0), g); read_floats<V>(row +
  + (gate_first ? 0 : N), u)
  order of halves of gradients: concat
  - write_floats<V>(row + (gate_first ? 0 : N), g); write_floats<V>(row +
  - (gate_first ? N : 0), u)
  + write_floats<V>(row + (gate_first ? N : 0), g); write_floats<V>(row +
  + (gate_first ? 0 : N), u)
  halves of N - 1: concat_gate_first
  - read_floats<V>(row + (gate_first ? N : 0), u)
  + read_floats<V>(row + (gate_first ? N - 1 : 0), u)
  rows of N x2: concat, rows_of_x
  - i * V / N * N + i * V
  + i * V
  gate always first: concat_value_first
  - read_floats<V>(row + (gate_first ? 0 : N), g)
  + read_floats<V>(row, g)
  order of neighbours: interleave, asymmetric
  - g[j] = both[2 * j + !gate_first]; u[j] = both[2 * j + gate_first];
  + g[j] = both[2 * j + gate_first]; u[j] = both[2 * j + !gate_first];
  order of neighbouring gradients: interleave
  - = g[j]; both[2 * j + gate_first] = u[j];
  + = u[j]; both[2 * j + gate_first] = g[j];
  neighbours without the stride: interleave, several_threads
  - read_floats<2 * V>(packed + i * 2 * V
  + read_floats<2 * V>(packed + i * V
  first neighbours for all: interleave, fours
  - u[j] = both[2 * j + gate_first]
  + u[j] = both[gate_first]
act.h
  tanh for erf: geglu, float32, pointwise
  - return x * normal_cdf(x);
  + return x * gelu_tanh_gate(x);
  tanh for erf in 16 bits: geglu, sixteen_bits
  - return x * normal_cdf(x);
  + return x * gelu_tanh_gate(x);
  tanh for erf in the gradient: geglu
  - normal_cdf(x) + x *
  + gelu_tanh_gate(x) + x *
  density dropped: geglu
  - normal_cdf(x) + x * normal_pdf(x)
  + normal_cdf(x)
  ReLU for SiLU: swiglu
  - return g * scaled_sigmoid(slope, g);
  + return g > 0.0f ? g : 0.0f;
  beta dropped: quick_geglu
  - silu(as_type<float>(beta), x)
  + silu(1.0f, x)
  beta of the gradient dropped: quick_geglu
  - silu_grad(as_type<float>(beta), x)
  + silu_grad(1.0f, x)
  second term dropped: swiglu|quick_geglu
  - s + slope * g * s * scaled_sigmoid(-slope, g)
  + s
  psi dropped: gtu|drelu|swiglu_clamped|swiglu_clamp_post
  - Phi::value(g) * Psi::value(u)
  + Phi::value(g) * u
  phi dropped: gated
  - Phi::value(g) * Psi::value(u)
  + g * Psi::value(u)
  psi of d_gate dropped: gtu|drelu|swiglu_clamped|swiglu_clamp_post
  - Phi::grad(g) * Psi::value(u)
  + Phi::grad(g) * u
  phi of d_up dropped: gated
  - Phi::value(g) * Psi::grad(u)
  + g * Psi::grad(u)
  gate's clamp missing: swiglu_clamped
  - (alpha), x > bound ? bound : x)
  + (alpha), x)
  clamp after SiLU missing: swiglu_clamp_post, many
  - y > bound ? bound : y
  + y
  clamp before SiLU: swiglu_clamp_post, many
  - y = silu(1.0f, x), bound = as_type<float>(limit);
  + bound = as_type<float>(limit), y = silu(1.0f, x > bound ? bound : x);
  up's upper clamp missing: swiglu_clamped|swiglu_clamp_post, many
  - x > bound ? bound : (x <
  + (x <
  up's lower clamp missing: swiglu_clamped|swiglu_clamp_post, many
  - (x < -bound ? -bound : x)
  + x
  up's offset dropped: swiglu_clamped
  - y + as_type<float>(offset)
  + y
  gradient past the clamp: swiglu_clamped
  - inside ? silu_grad(as_type<float>(alpha), x) : 0.0f
  + silu_grad(as_type<float>(alpha), x)
  gradient past the clamp after SiLU: swiglu_clamp_post, many
  - inside ? silu_grad(1.0f, x) : 0.0f
  + silu_grad(1.0f, x)
  gradient past up's clamp: swiglu_clamped|swiglu_clamp_post
  - metal::abs(x) < as_type<float>(limit) ? 1.0f : 0.0f
  + 1.0f
  square dropped: relu2_glu
  - Relu::value(x) * Relu::value(x)
  + Relu::value(x)
  2 of the square dropped: relu2_glu
  - 2.0f * Relu::value(x)
  + Relu::value(x)
  leaky ReLU: reglu|drelu
  - x < 0.0f ? 0.0f : x;
  + x < 0.0f ? 1e-3f * x : x;
  ReLU's step dropped: reglu|drelu
  - x > 0.0f ? 1.0f : 0.0f
  + 1.0f
  sigmoid mirrored: glu|gtu|swiglu
  - (x < 0.0f ? e : 1.0f)
  + (x < 0.0f ? 1.0f : e)
  sigmoid for tanh: gtu
  - metal::precise::tanh(x)
  + sigmoid(x)
  tanh's gradient of x: gtu
  - grad(2.0f * x)
  + grad(x)
  cubic term dropped: geglu_tanh
  - metal::fma(B, square, A);
  + A;
normal.h
  one tail for both: geglu
  - x < 0.0f ? tail : 1.0f - tail
  + tail
  middle too wide: geglu
  - a < 1.0f
  + a < 3.0f
  last coefficient dropped: geglu
  - i = 1; i < n; i++
  + i = 1; i < n - 1; i++
  density not normalised: geglu
  - 0.3989423f *
  +
"""

# V: columns of a chunk; R: rows of a weight that a simdgroup takes.
NEEDS: dict[str, Callable[[Case], object]] = {
    "every_byte": lambda c: False,
    "product": lambda c: c.K,
    "pointwise": lambda c: not c.K,
    "alone": lambda c: c.kernel.startswith("down"),
    # Sizes
    "rows": lambda c: c.N > 1,
    "rows_31": lambda c: c.N == 31,
    "rows_of_x": lambda c: c.M > 1,
    "fewer_than_max_M": lambda c: c.M < MAX_M,
    "several_threads": lambda c: c.M * c.N > 4,
    "fours": lambda c: c.N % 4 == 0,
    "odd": lambda c: c.N % 4,
    "K_of_fours": lambda c: c.K % 4 == 0,
    "not_square": lambda c: c.N != c.K,
    "many_columns": lambda c: c.K > 1000,
    "many": lambda c: c.M * c.N > 400,
    # How the product is cut up
    "several_lanes": lambda c: c.K > tile(c).V,
    "all_lanes": lambda c: c.K >= 32 * tile(c).V,
    "several_rounds": lambda c: c.K > 32 * tile(c).V,
    "several_threadgroups": lambda c: c.N > 2 * tile(c).R,
    "whole_simdgroup": lambda c: c.N >= tile(c).R,
    "last_simdgroup_cut": lambda c: c.N % tile(c).R,
    "last_group_cut": lambda c: c.N % (2 * tile(c).R),
    "idle_simdgroup": lambda c: 0 < c.N % (2 * tile(c).R) <= tile(c).R,
    "vectors": lambda c: tile(c).V > 1,
    "chunk_below_32": lambda c: tile(c).V < 32,
    "chunk_of_32": lambda c: tile(c).V == 32,
    "parts": lambda c: (8 if c.M > 1 else 16) < tile(c).V,
    "groups": lambda c: any(q.group_size < tile(c).V for q in formats(c)),
    "single_words": lambda c: any(q.bits * tile(c).V == 32 for q in formats(c)),
    "even_words": lambda c: all(q.bits * tile(c).V % 64 == 0 for q in formats(c)),
    # Formats and dtypes
    "dense": lambda c: DENSE in (c.weight, c.up),
    "packed": lambda c: formats(c),
    "affine": lambda c: of(c, "affine"),
    "straddling": lambda c: of(c, "affine", 3, 5, 6),
    "odd_bits": lambda c: of(c, "affine", 3, 5),
    "masked": lambda c: of(c, "affine", 2, 4),
    "four_bits": lambda c: of(c, "affine", 4),
    "bytes": lambda c: of(c, "affine", 8),
    "e2m1": lambda c: of(c, "mxfp4") or of(c, "nvfp4"),
    "mxfp": lambda c: of(c, "mxfp4") or of(c, "mxfp8"),
    "mxfp8": lambda c: of(c, "mxfp8"),
    "nvfp4": lambda c: of(c, "nvfp4"),
    "floating": lambda c: any(q.mode != "affine" for q in formats(c)),
    "words": lambda c: any(
        q.mode != "affine" or q.bits in (3, 5, 6) for q in formats(c)
    ),
    "float32": lambda c: c.dtype == "float32",
    "float16": lambda c: c.dtype == "float16",
    "sixteen_bits": lambda c: c.dtype != "float32",
    "float32_parameters": lambda c: "float32" in (c.parameters or c.dtype),
    # What is around the product
    "normed": lambda c: c.norm,
    "gemma": lambda c: c.norm == "gemma",
    "some_bias": lambda c: c.biases,
    "absent_bias": lambda c: c.biases != "biases",
    "gate_bias": lambda c: c.biases in ("gate_bias", "biases"),
    "up_bias": lambda c: c.biases in ("up_bias", "biases"),
    "residual": lambda c: c.residual,
    # Variants and layouts
    "gated": lambda c: c.variant not in ("", "bilinear"),
    "asymmetric": lambda c: c.variant not in ("bilinear", "drelu"),
    "separate": lambda c: c.layout == "separate",
    "concat": lambda c: c.layout.startswith("concat"),
    "concat_gate_first": lambda c: c.layout == "concat",
    "concat_value_first": lambda c: c.layout == "concat_value_first",
    "interleave": lambda c: c.layout.startswith("interleave"),
}


class Mutant(NamedTuple):
    """A wrong kernel.

    Attributes:
        file: the one in ``metal/`` that is changed.
        name: what is wrong.
        old: text in the file.
        new: what stands there instead.
        needs: what a case needs to notice.
        count: how often ``old`` occurs.
    """

    file: str
    name: str
    old: str
    new: str
    needs: tuple[str, ...] = ()
    count: int = 1

    @property
    def id(self) -> str:
        return f"{self.file}: {self.name}"

    def apply(self, text: str) -> str:
        """``text`` of the file, mutated."""
        pattern = r"\s+".join(map(re.escape, self.old.split()))
        changed, found = re.subn(pattern, lambda _: self.new, text)
        if found != self.count:
            raise ValueError(
                f"mutant is out of date: {self.file} has {found} and not {self.count} "
                f"of {self.old!r}; change the mutant with the kernel"
            )
        return changed

    def sees(self, case: Case) -> bool:
        """Whether a case can notice."""
        return all(_meets(need, case) for need in self.needs)


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Build kernels from the mutated file inside a ``with`` block."""
    original = metal_source._text
    changed = mutant.apply(original(mutant.file))
    text = lambda name: changed if name == mutant.file else original(name)
    try:
        with mock.patch.object(metal_source, "_text", text):
            _forget()
            yield
    finally:
        _forget()


def _forget() -> None:
    for cached in (metal_source.trim, metal_source._pieces, jit._build):
        cached.cache_clear()


def formats(c: Case):
    """Quantizations of a case's weights."""
    return [FORMATS[name] for name in (c.weight, c.up) if name in FORMATS]


def of(c: Case, mode: str, *bits: int) -> bool:
    """Whether a weight of a case has this mode, and these bits."""
    return any(q.mode == mode and q.bits in (bits or (q.bits,)) for q in formats(c))


@cache
def tile(c: Case):
    """How ``kernels`` cuts up the product of a case."""
    words = mx.zeros((c.N, 1), mx.uint32)
    weights = [
        QuantizedWeight(words, words, None, q.group_size, q.bits, q.mode)
        for q in formats(c)
    ]
    return choose_tile(c.K, c.M, weights or [words], normed=bool(c.norm))


def _meets(need: str, case: Case) -> bool:
    if need in NEEDS:
        return bool(NEEDS[need](case))
    variants = need.split("|")
    unknown = set(variants) - VARIANTS.keys()
    assert not unknown, f"{unknown} are not in NEEDS and no variants"
    return case.variant in variants


def _parse(table: str) -> Iterator[Mutant]:
    file = ""
    for part in re.split(r"\n(?=\S|  [^-+ ])", table.strip()):
        head, *lines = part.splitlines()
        if not lines:
            file = head
            continue
        match = re.fullmatch(r"  (.+?)(?: x(\d+))?:(.*)", head)
        name, count, needs = match.groups()
        old, new = (
            " ".join(line[4:] for line in lines if line[2] == sign) for sign in "-+"
        )
        needs = tuple(filter(None, needs.replace(",", " ").split()))
        yield Mutant(file, name, old, new, needs, int(count or 1))


MUTANTS = list(_parse(TABLE))
