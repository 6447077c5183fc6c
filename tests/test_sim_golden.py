"""The text we compile is, byte for byte, the text that MLX hands to Metal."""

import mlx.core as mx
import pytest

from mlx_glu.metal_sim.golden import mlx_source
from mlx_glu.metal_sim.signature import ATTRIBUTES, TYPES, Signature

X = mx.zeros((4, 16), mx.float16)
BODY = "out[thread_position_in_grid.x] = inp[0];"


def case(source=BODY, *, inputs=None, dtypes=(mx.float32,), **more):
    """Return the arguments of the constructor and of the call."""
    inputs = {"inp": X} if inputs is None else inputs
    names = ["out", *(f"out{i}" for i in range(1, len(dtypes)))]
    made = {"name": "case", "input_names": list(inputs), "output_names": names}
    called = {"inputs": list(inputs.values()), "output_dtypes": list(dtypes)}
    called |= {"output_shapes": [(8,)] * len(dtypes)}
    called |= {"grid": (64, 1, 1), "threadgroup": (32, 1, 1)}
    for key, value in more.items():
        (called if key in ("template", "init_value") else made)[key] = value
    return {**made, "source": source}, called


LAYOUT = "int i = inp_shape[0] + inp_ndim; long j = inp_strides[0] + b_strides[1];"
CASES = {
    "plain": case(),
    "no input": case("out[0] = 1;", inputs={}),
    "scalars": case(inputs={"inp": 2.5, "n": 3, "flag": True}),
    "0-d reference": case(inputs={"inp": mx.array(1.0, mx.bfloat16), "b": X}),
    "constant below 8": case(
        inputs={"inp": mx.zeros((7,)), "b": mx.zeros((8,)), "c": mx.zeros((2, 3))}
    ),
    "empty input": case(inputs={"inp": mx.zeros((0, 4)), "b": X}),
    "shape, strides, ndim": case(LAYOUT, inputs={"inp": X, "b": X.T, "c": X}),
    "layout of a scalar": case(LAYOUT, inputs={"inp": 1.0, "b": X}),
    "layout in the header": case(header="// inp_shape thread_index_in_quadgroup\n"),
    "suffix names": case("int row_shape = 0;", inputs={"w": X, "row": X}),
    "template": case(
        template=[("T", mx.bfloat16), ("K", 64), ("fast", True), ("slow", False)]
    ),
    "negative template int": case(template=[("N", -3)]),
    "empty template": case(template=[]),
    "atomic outputs": case(atomic_outputs=True, dtypes=(mx.uint32, mx.float32)),
    "many outputs": case(dtypes=(mx.float16, mx.bfloat16, mx.int8, mx.bool_)),
    "init value": case(init_value=0.0),
    "header": case(header="constant int n = 3;\n#define A 1"),
    "strided": case(LAYOUT, inputs={"inp": X, "b": X}, ensure_row_contiguous=False),
    "every attribute": case("; ".join(ATTRIBUTES)),
    "part of a word": case("int a_thread_position_in_threadgroups, lane_id, grid;"),
    "every dtype": case(
        inputs={f"x{i}": mx.zeros((9,), t) for i, t in enumerate(TYPES)},
        dtypes=tuple(TYPES),
        template=[(f"T{i}", t) for i, t in enumerate(TYPES)],
    ),
    "lines kept": case("\n  // comment\n\n  out[0] = inp[0];  \n"),
}


@pytest.mark.parametrize("name", CASES)
def test_text_is_mlx_s(name):
    made, called = CASES[name]
    signature = Signature(
        made["name"],
        tuple(made["input_names"]),
        tuple(made["output_names"]),
        made["source"],
        made.get("header", ""),
        made.get("atomic_outputs", False),
    )
    inputs = [x if isinstance(x, mx.array) else mx.array(x) for x in called["inputs"]]
    _, text = signature.text(
        inputs, called["output_dtypes"], called.get("template") or ()
    )
    assert text == mlx_source(made, called)


def test_a_refused_call_leaves_standard_output_alone(capfd):
    made, called = case()
    with pytest.raises(ValueError, match="output_dtypes"):
        mlx_source(made, {**called, "output_dtypes": []})
    print("still there", flush=True)
    assert capfd.readouterr().out == "still there\n"
