"""scripts/sim_compare.py: its rules hold on small layers, and its table is current."""

import dataclasses
import io
import re
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from sim_programs import needs_simulator

from mlx_glu.bench.mlx_kernels import CUBE, GELU, SWIGLU
from mlx_glu.bench.paths import BITS, Comparison, Shape, count

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import sim_compare  # noqa: E402
from sim_compare import SHAPES  # noqa: E402

SMALL = {
    "aligned": Shape("aligned", 512, 1024),
    "off alignment": Shape("off alignment", 576, 704),
    "gemma": Shape("gemma", 640, 1088, "geglu_tanh", gemma=True),
}


@needs_simulator
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
def test_ours_does_no_more_than_stock(shape, bits):
    compared = Comparison.of(shape, bits, mx.float16)
    found = compared.violations()
    if shape.gemma:  # 1% of so small a layer is less than its post norm
        found = [line for line in found if "bytes_once is" not in line]
    assert found == []
    kernels = {d.name for d in compared.stock.dispatches}
    slow = "affine_qmv" in kernels
    assert slow == (shape.model != "aligned")
    ours = count(compared.ours)
    if not shape.gemma:
        assert (ours.dispatches, ours.stages) == (2, 2)
        assert (count(compared.stock).dispatches, count(compared.stock).stages) == (
            6,
            5,
        )


@needs_simulator
def test_rules_notice():
    """A weight read twice, an output written in part, a count above stock's."""
    compared = Comparison.of(SMALL["aligned"], 4)
    first = compared.ours.dispatches[0]
    words, h = first.buffers["gate words"], first.buffers["h"]
    twice = dataclasses.replace(words, read_merged=2 * words.size)
    part = dataclasses.replace(h, written_merged=h.size - 2, unwritten=1)
    wrong = dataclasses.replace(
        first, buffers={**first.buffers, "gate words": twice, "h": part}
    )
    compared.ours.dispatches[:] = [wrong, *compared.ours.dispatches[1:], *[wrong] * 9]
    found = "\n".join(compared.violations())
    for name in ("gate words: ", "h: ", "bytes_once is", "dispatches is", "loads is"):
        assert name in found


def primitives(y):
    """What each compiled kernel of a graph is made of, in MLX's own words."""
    text = io.StringIO()
    mx.export_to_dot(text, y)
    names = re.findall(r'label ="Compiled(\w+)"', text.getvalue())
    return [re.findall(r"[A-Z][a-z]+", n.replace("Broadcast", "")) for n in names]


def test_elementwise_kernels_are_those_of_compile():
    gate, up = mx.ones((1, 64), mx.bfloat16), mx.ones((1, 64), mx.bfloat16)
    swiglu = mx.compile(lambda g, u: nn.silu(g) * u, shapeless=True)
    functors = [[step[1] for step in tape] for tape in (SWIGLU, CUBE, GELU)]
    assert primitives(swiglu(gate, up)) == functors[:1]
    assert primitives(nn.gelu_approx(gate)) == functors[1:]


def section():
    text = sim_compare.README.read_text()
    return text.split(sim_compare.BEGIN)[1].split(sim_compare.END)[0]


def rows(head):
    """Cells of the table with this head."""
    lines = iter(section().splitlines())
    assert any(line == "| " + head.replace("|", " | ") + " |" for line in lines)
    next(lines)
    for line in lines:
        if not line:
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("head", sim_compare.HEADS, ids=["counts", "bytes"])
def test_table_is_of_the_current_shapes(head):
    names = head.split("|")
    cases = [(shape, bits) for shape in SHAPES for bits in BITS]
    for (shape, bits), cells in zip(cases, rows(head), strict=True):
        row = dict(zip(names, cells, strict=True))
        assert row["model"] == shape.model
        assert row["bits"] == f"{bits}{'' if shape.aligned(bits) else '*'}"
        assert row.get("K x N") in (None, f"{shape.K} x {shape.N}")
        pairs = [cell.split(" -> ") for cell in cells if "->" in cell]
        assert len(pairs) == len(names) - (3 if "K x N" in row else 2)
        for stock, ours in pairs:
            assert float(ours) <= float(stock), row


def test_table_says_what_it_is():
    text = " ".join(section().split())
    assert "simulated counts, not time" in text
    assert sim_compare.COMMAND in text
    assert (SCRIPTS / "sim_compare.py").exists()
