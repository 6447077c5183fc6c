"""glu_mul and glu_linear: numbers, gradients, transformations, refusals."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import assert_no_worse, derivative64, f64, oracle_mul
from random_arrays import normal, quantized

from mlx_glu import ops, reference
from mlx_glu.dispatch import use_impl
from mlx_glu.ops import QuantizedWeight, glu_linear, glu_mul
from mlx_glu.proof.oracle import dense64, linear64
from mlx_glu.quantization import MODES
from mlx_glu.variants import VARIANTS, get

FORMATS = [
    (mode, bits, group_size)
    for mode, known in MODES.items()
    for bits in known.bits
    for group_size in known.group_sizes
]
POINTWISE = [v for v in VARIANTS.values() if v.pointwise]
by_name = lambda v: v.name


def eager_linear(x, weight, bias=None):
    """What mlx.nn computes; float32, as a half is wrong on the CPU of Linux."""
    if not isinstance(weight, QuantizedWeight):
        return reference.linear(x, weight, bias)
    wide = lambda a: a if a is None or a.dtype == mx.uint8 else a.astype(mx.float32)
    kwargs = dict(zip(("group_size", "bits", "mode"), weight[3:], strict=True))
    parts = weight.weight, wide(weight.scales), wide(weight.biases)
    y = mx.quantized_matmul(x.astype(mx.float32), *parts, **kwargs)
    return (y if bias is None else y + bias.astype(mx.float32)).astype(x.dtype)


def check_linear(x, gate, up, variant, biases=(None, None)):
    y = glu_linear(x, gate, up, variant=variant, gate_bias=biases[0], up_bias=biases[1])
    assert y.dtype == x.dtype
    g64, u64 = (linear64(f64(x), w, b) for w, b in zip((gate, up), biases, strict=True))
    g, u = (eager_linear(x, w, b) for w, b in zip((gate, up), biases, strict=True))
    params = dict(variant.params)
    stock = reference.PHI[variant.phi][0](g, params)
    stock = stock * reference.PSI[variant.psi][0](u, params)
    assert_no_worse(y, stock, oracle_mul(g64, u64, variant), terms=x.shape[-1])


@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
def test_glu_mul_is_the_reference(dtype):
    rng = np.random.default_rng(0)
    gate, up = (normal(rng, 3, 5, 31, dtype=dtype) for _ in range(2))
    for name, variant in VARIANTS.items():
        y = glu_mul(gate, up, variant=name)
        assert y.dtype == dtype
        assert mx.array_equal(y, reference.glu_mul(gate, up, variant))
    with use_impl("stock"):
        assert mx.array_equal(glu_mul(gate, up), glu_mul(gate, up, variant="swiglu"))


@pytest.mark.parametrize("K", [64, 512, 576])
@pytest.mark.parametrize("N", [1, 31, 64, 515])
def test_dense_and_quantized_shapes(N, K):
    rng = np.random.default_rng(K + N)
    gate, up = (normal(rng, N, K, scale=K**-0.5) for _ in range(2))
    for M in (1, 2, 3, 8, 33):
        x = normal(rng, M, K)
        check_linear(x, gate, up, get("swiglu"))
        if M < 8:
            pair = quantized(gate, 4, 64), quantized(up, 8, 32)
            check_linear(x, *pair, get("geglu"))


@pytest.mark.parametrize("variant", POINTWISE, ids=by_name)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_every_variant_in_half(variant, dtype):
    # Small pre-activations: their own rounding is then amplified by at most 2.
    rng = np.random.default_rng(5)
    x = normal(rng, 3, 64, dtype=dtype)
    gate, up = (normal(rng, 31, 64, scale=0.04, dtype=dtype) for _ in range(2))
    check_linear(x, gate, up, variant)
    check_linear(x, quantized(gate), up, variant)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: "-".join(map(str, f)))
def test_half_projections_round_once(fmt, dtype):
    mode, bits, group_size = fmt
    rng = np.random.default_rng(6)
    x = normal(rng, 2, 256, dtype=dtype)
    weight = quantized(normal(rng, 7, 256, dtype=dtype), bits, group_size, mode)
    bias = normal(rng, 7, dtype=dtype)
    for b in (None, bias):
        y = reference.linear(x, weight, b)
        assert y.dtype == dtype
        assert_no_worse(
            y, eager_linear(x, weight, b), linear64(f64(x), weight, b), terms=256
        )


def test_random_small_shapes():
    seed = 20021612
    print("seed", seed)
    rng = np.random.default_rng(seed)
    names = list(VARIANTS)
    for _ in range(20):
        M, N, groups = (
            1 + int(v**2 * top)
            for v, top in zip(rng.random(3), (12, 90, 4), strict=True)
        )
        K = 128 * groups
        weights = []
        for _ in range(2):
            w = normal(rng, N, K, scale=K**-0.5)
            mode, bits, group_size = FORMATS[rng.integers(len(FORMATS))]
            packed = rng.random() < 0.7
            weights.append(quantized(w, bits, group_size, mode) if packed else w)
        biases = [normal(rng, N) if rng.random() < 0.5 else None for _ in range(2)]
        variant = VARIANTS[names[rng.integers(len(names))]]
        check_linear(normal(rng, M, K), *weights, variant, biases)


def test_leading_axes_and_strides():
    rng = np.random.default_rng(1)
    gate, up = (normal(rng, 31, 64, scale=0.1) for _ in range(2))
    x = normal(rng, 2, 3, 64)
    y = glu_linear(x, gate, up)
    assert y.shape == (2, 3, 31)
    assert glu_linear(x[0, 0], gate, up).shape == (31,)
    assert glu_linear(x[:, :0], gate, up).shape == (2, 0, 31)
    strided = normal(rng, 4, 128)[::2, ::2]
    row = mx.broadcast_to(x[0, 0], (3, 64))
    for view in (strided, row):
        flat = glu_linear(mx.array(np.array(view)), gate, up)
        # A BLAS sums in another order where the strides are others.
        assert_no_worse(glu_linear(view, gate, up), flat, f64(flat), terms=64)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_transformations_agree_with_plain_autograd(variant):
    rng = np.random.default_rng(2)
    gate, up, d = (normal(rng, 4, 16) for _ in range(3))
    ours = lambda g, u: glu_mul(g, u, variant=variant)
    plain = lambda g, u: reference.glu_mul(g, u, variant)
    loss = lambda f: lambda g, u: (f(g, u) * d).sum()
    both = (0, 1)

    def same(a, b):
        for x, y in zip(a, b, strict=True):
            assert_no_worse(x, y, f64(y), terms=16)

    grads = mx.grad(loss(plain), both)(gate, up)
    value_and_grad = mx.value_and_grad(loss(ours), both)
    runs = [value_and_grad]
    # Each compiled function costs seconds on the CPU; two show that it works.
    if variant.name in ("swiglu", "gelu_topk"):
        runs.append(mx.compile(value_and_grad))
    for run in runs:
        value, found = run(gate, up)
        same([value], [loss(plain)(gate, up)])
        same(found, grads)
    same(mx.grad(loss(mx.checkpoint(ours)), both)(gate, up), grads)
    same(mx.grad(loss(mx.vmap(ours)), both)(gate, up), grads)
    rows = mx.vmap(mx.grad(lambda g, u, d: (ours(g, u) * d).sum(), both))
    same(rows(gate, up, d), grads)
    same([mx.vmap(ours, (0, None))(gate, up[0])], [plain(gate, gate * 0 + up[0])])
    primals, tangents = [gate, up], [d, gate]
    same(mx.jvp(ours, primals, tangents)[1], mx.jvp(plain, primals, tangents)[1])
    second = lambda f: mx.grad(lambda g: (mx.grad(loss(f))(g, up) ** 2).sum())
    same([second(ours)(gate)], [second(plain)(gate)])


def test_glu_linear_gradients():
    rng = np.random.default_rng(3)
    x, gate, up, d = (
        normal(rng, *shape, scale=0.3) for shape in ((3, 64), (7, 64), (7, 64), (3, 7))
    )
    gate_bias, up_bias = normal(rng, 7), normal(rng, 7)

    def loss(x, gate, up, gate_bias, up_bias):
        y = glu_linear(x, gate, up, gate_bias=gate_bias, up_bias=up_bias)
        return (y * d).sum()

    args = [x, gate, up, gate_bias, up_bias]
    grads = mx.grad(loss, argnums=range(5))(*args)
    exact = [f64(a) for a in args]
    g, u = (exact[0] @ exact[i].T + exact[i + 2] for i in (1, 2))
    swiglu = get("swiglu")
    dg = f64(d) * derivative64(lambda a: oracle_mul(a, u, swiglu), g)
    du = f64(d) * derivative64(lambda a: oracle_mul(g, a, swiglu), u)
    oracles = (
        dg @ exact[1] + du @ exact[2],
        dg.T @ exact[0],
        du.T @ exact[0],
        dg.sum(0),
        du.sum(0),
    )
    for y, oracle in zip(grads, oracles, strict=True):
        # No stock to compare with: oracle in its place leaves the floor alone.
        assert_no_worse(y, oracle, oracle, terms=64)


@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
def test_gradient_through_a_quantized_projection(dtype):
    rng = np.random.default_rng(4)
    x, d = normal(rng, 2, 64, dtype=dtype), normal(rng, 2, 70, dtype=dtype)
    weight = quantized(normal(rng, 70, 64, dtype=dtype))
    _, grads = mx.vjp(lambda x: reference.linear(x, weight), [x], [d])
    assert grads[0].dtype == dtype
    oracle = f64(d) @ dense64(weight)
    assert_no_worse(grads[0], oracle, oracle, terms=70)


def slope_of_peak_memory(mul, dtype):
    """Tensors held per layer: growth of the peak from 8 to 40 layers."""
    x = mx.full(1 << 16, 0.3).astype(dtype)

    def peak(layers):
        def loss(h):
            for i in range(layers):
                h = mul(h * (0.5 + i / 100), h * (0.7 - i / 100))
            return h.sum()

        grown = []
        # Another thread frees: the least of some tries is what must be held.
        for _ in range(5):
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            mx.eval(mx.grad(loss)(x))
            grown.append(mx.get_peak_memory() - before)
        return min(grown)

    return (peak(40) - peak(8)) / 32 / x.nbytes


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["swiglu", "geglu_tanh"])
def test_only_gate_and_up_are_held_for_the_gradient(name, dtype):
    variant = get(name)
    with mx.stream(mx.cpu):
        ours = lambda g, u: glu_mul(g, u, variant=variant)
        plain = lambda g, u: reference.glu_mul(g, u, variant)
        assert slope_of_peak_memory(ours, dtype) < 2.5
        assert slope_of_peak_memory(plain, dtype) > 3.5


X, W = mx.zeros((2, 128)), mx.zeros((3, 128))
Q = quantized(mx.ones((3, 128)))
MX4 = quantized(mx.ones((3, 128)), 4, 32, "mxfp4")
REFUSED = {
    "numpy": (lambda: glu_linear(np.ones((2, 128)), W, W), "mx.array but got ndarray"),
    "list": (lambda: glu_mul([1.0], [1.0]), "gate is an mx.array but got list"),
    "scalar": (lambda: glu_linear(mx.array(1.0), W, W), "scalar; add an axis"),
    "int x": (lambda: glu_linear(X.astype(mx.int32), W, W), r"x is .*int32 \[2, 128"),
    "transposed": (lambda: glu_linear(X, W.T, W), r"gate.*K = 128.*got \[128, 3\]"),
    "dtypes": (lambda: glu_linear(X, W, W.astype(mx.float16)), "up has the dtype of x"),
    "no norm": (lambda: glu_linear(X, W, W, norm=nn.RMSNorm(128)), "but got RMSNorm"),
    "numpy weight": (lambda: glu_linear(X, np.ones((3, 128)), W), "got ndarray; wrap"),
    "N": (lambda: glu_linear(X, W, W[:2]), "gate has 3 rows and up 2"),
    "variant": (lambda: glu_linear(X, W, W, variant="swish"), "but got 'swish'"),
    "bias": (lambda: glu_linear(X, W, W, gate_bias=X[0]), r"gate_bias is \[N\] = \[3"),
    "int bias": (lambda: glu_linear(X, W, W, up_bias=Q.weight[:, 0]), "up_bias is fl"),
    "mode": (lambda: glu_linear(X, Q._replace(mode="int4"), W), "gate.*mode 'int4'"),
    "bits": (lambda: glu_linear(X, Q._replace(bits=7), W), "with 7 bits"),
    "group": (lambda: glu_linear(X, Q._replace(group_size=16), W), "groups of 16"),
    "K": (lambda: glu_linear(X[:, :96], Q, W), "group_size = 64 but x has K = 96"),
    "columns": (lambda: glu_linear(X, Q._replace(bits=8), W), r"128 \* 8 / 32 col"),
    "packed": (lambda: glu_linear(X, Q._replace(weight=W), W), r"uint32 \[N, K \*"),
    "scales": (lambda: glu_linear(X, Q._replace(scales=W), W), r"scales of gate \(aff"),
    "biases": (lambda: glu_linear(X, W, Q._replace(biases=None)), "biases of up.*None"),
    "fp biases": (
        lambda: glu_linear(X, MX4._replace(biases=MX4.scales), W),
        r"biases of gate \(mxfp4\) is None",
    ),
    "fp scales": (
        lambda: glu_linear(X, MX4._replace(scales=W[:, :4]), W),
        "uint8.*but got float32",
    ),
    "mul shapes": (lambda: glu_mul(X, W), r"float32 \[2, 128\] and up.*\[3, 128\]"),
    "mul dtypes": (lambda: glu_mul(X, X.astype(mx.float16)), "one shape and dtype"),
    "mul int": (lambda: glu_mul(Q.weight, Q.weight), r"gate is .*but got uint32"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert str(error.value).startswith(("[glu_linear] ", "[glu_mul] ", "[variants] "))


def test_agrees_with_mlx_nn():
    rng = np.random.default_rng(7)
    x = normal(rng, 3, 62)
    value, gate = mx.split(x, 2, axis=-1)
    stock = nn.glu(x)
    assert_no_worse(glu_mul(gate, value, variant="glu"), stock, f64(stock), terms=2)
