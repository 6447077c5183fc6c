"""Every architecture of the installed mlx-lm: fused, the same logits, taken apart."""

import mlx.core as mx
import mlx_lm_zoo as zoo
import numpy as np
import pytest
from conftest import assert_no_worse
from mlx.utils import tree_flatten
from sim_programs import needs_simulator

from mlx_glu import dispatch, fuse, simulate, unfuse
from mlx_glu.fusion.survey import survey
from mlx_glu.linear_layers import weight_of
from mlx_glu.proof.oracle import linear64, oracle_mul
from mlx_glu.proof.tolerance import f64

TOKENS = mx.array([[3, 1, 4]])

#: Has a GLU that is not fused, and why.
NOT_FUSED = {
    "bitnet": "a norm between the gated product and the projection back",
    "kimi_k3": "its unit, SiTU, is not in the table",
    "lille-130m": "a norm between x and the projections",
    "olmo": "its feed-forward is no module of its own",
}
GATED = [name for name in zoo.architectures() if name not in zoo.WITHOUT_GLU]


def build(name):
    try:
        return zoo.build(name)
    except LookupError as error:
        pytest.skip(str(error))


def test_coverage(monkeypatch, capsys):
    """At least 102 of the 112 of mlx-lm 0.32.2 are fused; each other has its reason."""
    monkeypatch.setattr(zoo, "NEEDS_METAL", {})  # nothing runs here but the probes
    fused, faults = [], {}
    for name in GATED:
        sites = survey(zoo.build(name))
        if any(site.block or site.experts for site in sites):
            fused.append(name)
        else:
            faults[name] = "; ".join(sorted({s.fault for s in sites})) or "none found"
    total = len(zoo.architectures())
    with capsys.disabled():
        print(f"\nfused {len(fused)} / has a GLU {len(GATED)} / total {total}")
        for name, fault in faults.items():
            print(f"  not fused: {name}: {NOT_FUSED.get(name, '?')} ({fault})")
    assert set(faults) <= set(NOT_FUSED)
    assert len(fused) >= 102


@pytest.mark.parametrize("name", sorted({*zoo.architectures()} - {*GATED}))
def test_what_has_no_glu_is_left_alone(name):
    model = build(name)
    before = {path: type(module) for path, module in model.named_modules()}
    fuse(model)
    assert {path: type(module) for path, module in model.named_modules()} == before


@needs_simulator
@pytest.mark.parametrize("name", GATED)
def test_fused_and_taken_apart(name):
    model = build(name)
    keys = [path for path, _ in tree_flatten(model.parameters())]
    kinds = {path: type(module) for path, module in model.named_modules()}
    before = zoo.logits(model, TOKENS)

    fuse(model)
    assert [path for path, _ in tree_flatten(model.parameters())] == keys
    assert mx.array_equal(zoo.logits(model, TOKENS), before)
    with simulate(mode="fast"), dispatch.record() as choices:
        fused = zoo.logits(model, TOKENS)
    assert any(c.impl == "fused" for c in choices) == (name not in NOT_FUSED)
    assert mx.max(mx.abs(fused - before)) <= 2e-6 * mx.max(mx.abs(before))
    check_sites(model)

    unfuse(model)
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    assert mx.array_equal(zoo.logits(model, TOKENS), before)


def check_sites(model):
    """Each module by itself: a norm behind it would hide a wrong factor."""
    for site in survey(model):
        given = np.random.default_rng(1).normal(0, 2, (2, 2, 3, 64))
        gate, up = (mx.array(a, mx.float32) for a in given)
        if site.experts is not None:
            variant, value_first = site.experts
            pair = (up, gate) if value_first else (gate, up)
            oracle, terms = oracle_mul(f64(gate), f64(up), variant), 1
        elif site.block is not None and has_arrays(site):
            pair, oracle, terms = (gate,), oracle64(site, f64(gate)), 128
        else:
            continue
        call = site.module.activation if site.experts else site.module
        with simulate(mode="fast"):
            y = call(*pair)
            mx.eval(y)
        assert_no_worse(y, call(*pair), oracle, terms=terms)


def has_arrays(site):
    names = [name for name in (site.block.gate, site.block.up, site.block.down) if name]
    return all(weight_of(site.module[name]) is not None for name in names)


def oracle64(site, x):
    """A block in float64."""
    block, module = site.block, site.module
    project = lambda name, y: linear64(
        y, weight_of(module[name]), module[name].get("bias")
    )
    pair = [project(block.gate, x)]
    if block.up:
        pair.append(project(block.up, x))
    elif block.packing[1] == "interleave":
        pair = [pair[0][..., ::2], pair[0][..., 1::2]]
    else:
        pair = np.split(pair[0], 2, -1)
    if block.packing and block.packing[0] == "value_first":
        pair.reverse()
    return project(block.down, oracle_mul(*pair, block.variant))
