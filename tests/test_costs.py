"""The calculators say what real blocks have, compute and keep."""

from fractions import Fraction

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from step_memory import Stack, call, count_products, llama, measure, simple_products

from mlx_glu import GatedMLP, glu_hidden_size
from mlx_glu.training.costs import FeedForward, Mixture
from mlx_glu.training.moe import MoE
from mlx_glu.training.ungated import MLP, feed_forward

BLOCKS = pytest.mark.parametrize("name", ["swiglu", "relu"])


def sizes(module):
    return [a.size for _, a in tree_flatten(module.parameters())]


@BLOCKS
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_parameters_are_those_of_the_block(name, bias):
    costs = FeedForward(5, 7, gated=name == "swiglu", bias=bias)
    assert costs.parameters == sum(sizes(feed_forward(name, 5, 7, bias=bias)))


@pytest.mark.parametrize("shared", [None, 11], ids=["alone", "shared"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_parameters_are_those_of_the_mixture(bias, shared):
    expert = FeedForward(5, 7, bias=bias)
    given = None if shared is None else FeedForward(5, shared, bias=bias)
    costs = Mixture(expert, 6, 2, given, shared_gate=shared is not None)
    real = {"shared_hidden_dims": shared, "shared_gate": shared is not None}
    assert costs.parameters == sum(sizes(MoE(5, 7, 6, bias=bias, **real)))
    # Four of the six experts rest.
    assert costs.active_parameters == costs.parameters - 4 * expert.parameters


def test_published_sizes():
    mixtral = Mixture(FeedForward(4096, 14336), 8, 2)
    # 32 layers; attention, embeddings and norms bring them to 46.7B and 12.9B.
    assert round(32 * mixtral.parameters / 1e9, 1) == 45.1
    assert round(32 * mixtral.active_parameters / 1e9, 1) == 11.3
    assert 32 * FeedForward(4096, 11008).parameters == 4_328_521_728  # LLaMA-7B


@pytest.mark.parametrize("K", range(1, 13))
def test_three_matrices_at_two_thirds_cost_what_two_cost(K):
    """Exactly where 8/3 K is a whole number."""
    ungated = FeedForward(K, 4 * K, gated=False)
    gated = FeedForward(K, glu_hidden_size(K, multiple_of=1))
    is_whole = K % 3 == 0
    assert (gated.parameters == ungated.parameters) is is_whole
    assert (gated.flops(5) == ungated.flops(5)) is is_whole
    assert (gated.training_flops(5) == ungated.training_flops(5)) is is_whole
    assert gated.parameters <= ungated.parameters


def test_what_rises_is_activation_memory():
    """5.33 K for each token where an ungated block needs 4 K."""
    gated, ungated = FeedForward(96, 256), FeedForward(96, 384, gated=False)
    assert Fraction(gated.kept_columns(), 96) == Fraction(16, 3)
    assert Fraction(gated.kept_columns(), ungated.kept_columns()) == Fraction(4, 3)
    # Gate and up of a layer of Llama-2-7B, 4096 tokens in 16 bits; and x.
    llama_7b = FeedForward(4096, 11008)
    x = llama_7b.kept_bytes(4096, keeps="recompute")
    assert llama_7b.kept_bytes(4096) - x == 2 * 90_177_536


def exported_flops(fun, *args):
    """Two operations for each product in a graph that MLX exports."""
    products = []

    def see(part):
        if part.get("name") in ("Matmul", "AddMM"):
            products.append([shape for _, shape, _ in part["inputs"][:2]])

    mx.export_function(see, fun, *args)
    assert products
    return sum(2 * a[0] * a[1] * b[1] for a, b in products)


@BLOCKS
def test_flops_are_those_of_the_exported_graph(name):
    """MLX exports no custom function: of GatedMLP's layers, composed without one."""
    mlp, x = feed_forward(name, 6, 9), mx.ones((5, 6))
    run = llama if name == "swiglu" else lambda m, x: m.down_proj(m.up_proj(x) ** 2)
    costs = FeedForward(6, 9, gated=name == "swiglu")
    weights = [a for _, a in tree_flatten(mlp.parameters())]
    names = [key for key, _ in tree_flatten(mlp.parameters())]

    def loss(x, *weights):
        mlp.load_weights(list(zip(names, weights, strict=True)))
        return run(mlp, x).sum()

    def step(*args):
        value, grads = mx.value_and_grad(loss, range(len(args)))(*args)
        return value, *grads

    assert exported_flops(lambda *args: loss(*args), x, *weights) == costs.flops(5)
    assert exported_flops(step, x, *weights) == costs.training_flops(5)


@pytest.mark.parametrize(
    ("name", "recompute"), [("swiglu", False), ("swiglu", True), ("relu", False)]
)
@simple_products()
def test_flops_are_those_of_the_block(name, recompute):
    """Each product of a step is over M, K and N, whichever is summed over."""
    mlp, x = feed_forward(name, 6, 9), mx.ones((8, 6))
    if recompute:
        mlp.recompute = True
    costs = FeedForward(6, 9, gated=name == "swiglu")

    def loss(params, x):
        mlp.update(params)
        return mlp(x).sum()

    each = 2 * 8 * 6 * 9
    step = mx.value_and_grad(loss, argnums=(0, 1))(mlp.parameters(), x)
    found = each * count_products(*[a for _, a in tree_flatten(step)])
    assert found == costs.training_flops(8, recompute=recompute)
    mlp.eval()
    assert each * count_products(mlp(x)) == costs.flops(8)


KEPT = {
    "plain": (lambda: GatedMLP(64, 192), llama, "plain"),
    "GatedMLP": (lambda: GatedMLP(64, 192), call, "lean"),
    "recompute": (lambda: GatedMLP(64, 192, recompute=True), call, "recompute"),
    "MLP": (lambda: MLP(64, 256), call, "plain"),
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("way", KEPT)
@simple_products()
def test_kept_bytes_are_what_a_step_keeps(way, dtype):
    """To a page: sums and other scalars are kept too."""
    make, run, keeps = KEPT[way]
    M, layers = 128, 3
    with mx.stream(mx.cpu):
        stack = Stack([make() for _ in range(layers)], run)
        stack.set_dtype(dtype)
        kept, _ = measure(stack, mx.random.normal((M, 64)).astype(dtype))
    block = stack.blocks[0]
    N = block.down_proj.weight.shape[1]
    costs = FeedForward(64, N, gated=isinstance(block, GatedMLP))
    # The first input is not the step's.
    expected = layers * costs.kept_bytes(M, dtype, keeps=keeps) - M * 64 * dtype.size
    assert abs(kept - expected) <= 1 << 14


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\[costs\] sizes are >= 1 .*hidden_dims = 0"):
        FeedForward(4, 0)
    with pytest.raises(ValueError, match=r"top_k = 3 of 2 experts"):
        Mixture(FeedForward(4, 4), 2, 3)
    with pytest.raises(ValueError, match="keeps is one of plain, lean, recompute"):
        FeedForward(4, 4).kept_columns("nothing")
