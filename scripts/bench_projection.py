"""What one projection costs on the CPU, by weight format and number of rows.

    .venv/bin/python scripts/bench_projection.py
    MLX_GLU_BLAS=none .venv/bin/python scripts/bench_projection.py

These times decide mlx_glu/projection.py: UNPACK_FROM (from how many rows unpacking
a packed weight pays), SPLIT_FROM (whether two cores beat one), float32. Each is the
least of 5 means, so other work on the machine disturbs it little.
"""

import argparse
import time
from collections.abc import Callable

from mlx_glu import blas  # before MLX: it brings the BLAS
from mlx_glu.projection import _on_cpu, _product, _split, _transposed
from mlx_glu.quantization import MODES, Quantization, QuantizedWeight

import mlx.core as mx  # isort: skip

ROWS = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden-size", type=int, default=576)
    parser.add_argument("--intermediate-size", type=int, default=1536)
    args = parser.parse_args()
    K, N = args.hidden_size, args.intermediate_size
    mx.set_default_device(mx.cpu)
    print(f"K {K}, N {N}, BLAS {blas.gflops():.0f} GFLOP/s, ms")
    print(" " * 22 + "".join(f"{f'M {M}':>9}" for M in ROWS))
    dense = mx.random.normal((N, K))
    show("float32", dense, K, _product)
    show("float32, two cores", dense, K, split)
    show("float32, as run", dense, K, _on_cpu)
    show("bfloat16", dense.astype(mx.bfloat16), K, _product)
    show("bfloat16, two cores", dense.astype(mx.bfloat16), K, split)
    for mode in MODES:
        group_size, bits = MODES[mode].default
        form = Quantization(group_size, bits, mode)
        parts = mx.quantize(dense, **form.as_config())
        biases = parts[2] if mode == "affine" else None
        weight = QuantizedWeight(parts[0], parts[1], biases, group_size, bits, mode)
        show(f"{mode} {bits}-bit", weight, K, _product)
        show(f"{mode} {bits}-bit, two cores", weight, K, split)
        show(f"{mode} {bits}-bit, transposed", weight, K, _transposed)
        show(f"{mode} {bits}-bit, as run", weight, K, _on_cpu)


def split(x: mx.array, weight: mx.array, bias: None) -> mx.array:
    return _split(_product, x, weight, bias)


def show(name: str, weight: object, K: int, run: Callable) -> None:
    dtype = weight.dtype if isinstance(weight, mx.array) else mx.float32
    cells = []
    for M in ROWS:
        x = mx.random.normal((M, K)).astype(dtype)
        mx.eval(x, weight)
        cells.append(least(lambda x=x: run(x, weight, None)))
    print(f"{name:22}" + "".join(f"{cell:9.2f}" for cell in cells))


def least(compute: Callable) -> float:
    """Milliseconds of one evaluation."""
    mx.eval(compute())
    means = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            mx.eval(compute())
        means.append((time.perf_counter() - start) * 100)
    return min(means)


if __name__ == "__main__":
    main()
