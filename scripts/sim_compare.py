"""Count what MLX's stock FFN and ours do for one token, kernel by kernel.

Both paths run in the simulator of mlx_glu/metal_sim, for the FFN shapes of known
models, with affine weights in groups of 64:

  stock  what mlx-lm runs: rms_norm, a product for gate and for up, the compiled
         elementwise kernel, the product for down, the add
  ours   ops.glu_linear with norm=, ops.down_linear with residual=

Results are compared with float64 first. Counts are those of a simulation: they say
what the text of the kernels does, not how long it takes. Exit code 1, and a line
for each count, if ours moves more than it has to or does more than stock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from mlx_glu.bench import shapes  # before MLX: it brings the BLAS
from mlx_glu.bench.paths import BITS, GROUP, Comparison, Shape, count

import mlx.core as mx  # isort: skip

README = Path(__file__).parents[1] / "metal" / "README.md"
BEGIN, END = "<!-- sim_compare begin -->", "<!-- sim_compare end -->"
MODELS = ("SmolLM2-135M", "Qwen2.5-0.5B", "Llama-3.2-1B", "Gemma-3-1B", "Llama-3-8B")
SHAPES = tuple(
    Shape(name, *shapes.parse(name)[1:4], gemma="Gemma" in name) for name in MODELS
)
DTYPES = ("bfloat16", "float16")
COMMAND = "scripts/sim_compare.py --write"
INTRODUCTION = """
`.venv/bin/python {command}` makes this section. These are **simulated
counts, not time**: what the text of the kernels does for one token in one FFN, from the
norm to the residual, with {dtype} activations and affine weights in groups of {group},
nothing scaled down. Stock is what mlx-lm runs, by the kernels of MLX {version}.
Cells are stock -> ours; a star marks shapes where K keeps MLX from its fast kernel in
one product or more.
"""
NOTES = """
- Weights, scales, biases and outputs are moved exactly once. once/least: all bytes from
  and to device memory, where a dispatch reads x, h and the norm's weight once, over
  what has to be moved at least.
- Loads are instructions of simdgroups as the text has them; Apple's compiler may merge
  some. Operations are all arithmetic, indices included, a weight, with functions
  inlined and constant loops unrolled. Metal's compiler is expected to do both; if it
  did not, ours would do up to 3 times as many as stock, whose loops are written out.
- x: reads of x and the norm's weight by all simdgroups; h likewise. A byte that several
  lanes read in one instruction counts once; a cache serves the simdgroups after the
  first. Rest: arrays between dispatches, and the result.
- Not listed, and more: ours has a barrier in each threadgroup of its first kernel,
  stock has 3 in each norm.
- `rms_single_row` and what `mx.compile` generates are not in MLX's wheel and are
  written down in `mlx_glu/bench/mlx_kernels.py`. Gemma's post norm runs on MLX's
  kernels in both paths, in ours with 1 + w and the norm in float32.
"""
HEADS = (
    "model|K x N|bits|dispatches|stages|threadgroups|loads, 1000|simd operations|"
    "operations a weight|once/least",
    "model|bits|weights, MB|x, MB|h, MB|rest, kB",
)


def tables(compared: Iterable[Comparison]) -> str:
    """The section of the README."""
    rows = [[head.split("|"), ["---"] * (1 + head.count("|"))] for head in HEADS]
    dtype = ""
    for one in compared:
        layer, shape = one.layer, one.layer.shape
        dtype = str(layer.dtype).split(".")[-1]
        pair = count(one.stock), count(one.ours)
        weights = 3 * shape.K * shape.N

        def cell(name: str, form: str, unit: float = 1, pair=pair) -> str:
            return " -> ".join(format(getattr(c, name) / unit, form) for c in pair)

        bits = f"{layer.bits}{'' if shape.aligned(layer.bits) else '*'}"
        first = [cell(name, ".0f") for name in ("dispatches", "stages", "threadgroups")]
        first += [cell("loads", ".1f", 1e3), cell("simd_operations", ".0f")]
        first += [cell("operations", ".2f", weights)]
        first += [cell("bytes_once", ".4f", layer.least)]
        rows[0].append((shape.model, f"{shape.K} x {shape.N}", bits, *first))
        second = [cell(f"{name}_read", ".2f", 1e6) for name in ("weights", "x", "h")]
        rows[1].append((shape.model, bits, *second, cell("rest", ".1f", 1e3)))
    lines = (["| " + " | ".join(row) + " |" for row in table] for table in rows)
    both = "\n\n".join("\n".join(table) for table in lines)
    introduction = INTRODUCTION.format(
        command=COMMAND, dtype=dtype, group=GROUP, version=mx.__version__
    )
    return f"{introduction}\n{both}\n{NOTES}"


def write(section: str) -> None:
    """Put the section between its markers in metal/README.md."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}{section}{END}{rest.split(END)[1]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="", help="only models whose name contains this, as llama"
    )
    parser.add_argument(
        "--bits", type=int, choices=BITS, help="only these; both if not"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument(
        "--kernels", action="store_true", help="also print each dispatch and buffer"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the tables of all into metal/README.md",
    )
    args = parser.parse_args()
    if args.write and (args.model or args.bits or args.dtype != "bfloat16"):
        parser.error(
            "--write takes all models and bits in bfloat16; leave the rest out"
        )
    shapes = [s for s in SHAPES if args.model.lower() in s.model.lower()]
    args.cases = [
        (s, bits) for s in shapes for bits in BITS if bits == (args.bits or bits)
    ]
    if not args.cases:
        parser.error(
            f"no model named {args.model!r}: {', '.join(s.model for s in SHAPES)}"
        )
    return args


def main() -> int:
    args = parse()
    mx.set_default_device(mx.cpu)
    cases = args.cases
    compared, start = [], time.monotonic()
    for i, (shape, bits) in enumerate(cases):
        progress = f"{i + 1}/{len(cases)} {shape.model}, {bits} bits"
        print(f"{progress}, {time.monotonic() - start:.0f} s", file=sys.stderr)
        compared.append(Comparison.of(shape, bits, getattr(mx, args.dtype)))
        if args.kernels:
            show(compared[-1])
    section = tables(compared)
    print(section)
    if args.write:
        write(section)
    found = [line for one in compared for line in one.violations()]
    print("\n".join(found) or "No count is worse than stock's.", file=sys.stderr)
    return bool(found)


def show(compared: Comparison) -> None:
    """Print dispatches, their counts and each buffer's bytes."""
    for name in ("stock", "ours"):
        for d in getattr(compared, name).dispatches:
            r = d.report
            print(
                f"{name} {d.name}: stage {d.stage}, {r.threadgroups} threadgroups, "
                f"{r.simd_operations} simd operations, {r.barriers} barriers, {d.tally}"
            )
            for tensor, b in d.buffers.items():
                print(
                    f"  {tensor}: {b.size} bytes, {b.read_merged} read, "
                    f"{b.written_merged} written, {b.loads} loads, {b.stores} stores"
                )


if __name__ == "__main__":
    sys.exit(main())
