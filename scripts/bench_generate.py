"""Whole-model speed on this machine, mlx_glu beside mlx-lm, on the same weights.

    .venv/bin/python scripts/bench_generate.py --runs 5

Every run is a fresh process; the arms take turns and each round starts with
another one. All are timed from outside by the same clock: start-up is from the
start of the process to the first token, generation excludes the first token.
Prints medians with the 20th and 80th percentile, then one JSON line, which
--append adds to bench/results.jsonl. Read the result with bench/LOG.md.
"""

import argparse
import ctypes.util
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from mlx_glu import convert, hub

ROOT = Path(__file__).parents[1]
PROMPT = (
    "Explain in a few sentences what a gated linear unit is, why language models "
    "use one in their feed-forward layers, and what it costs in parameters and in "
    "memory compared with a plain layer of two matrices."
)
CHILD = """
import json, sys, time
package, folder, prompt, max_tokens, started = sys.argv[1:]
if package == "mlx_glu":
    from mlx_glu import load, stream_generate
else:
    from mlx_lm import load, stream_generate
model, tokenizer = load(folder)
messages = [{"role": "user", "content": prompt}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
begun, stamps, text = time.time(), [], ""
for step in stream_generate(model, tokenizer, ids, max_tokens=int(max_tokens)):
    stamps.append(time.time())
    text += step.text
print(json.dumps({
    "startup_s": stamps[0] - float(started),
    "prompt_tps": len(ids) / (stamps[0] - begun),
    "generation_tps": (len(stamps) - 1) / (stamps[-1] - stamps[0]),
    "peak_memory": step.peak_memory,
    "tokens": len(stamps),
    "text": text,
}))
"""
METRICS = ("startup_s", "prompt_tps", "generation_tps", "peak_memory")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a packed MLX folder (the default model)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--append", action="store_true")
    args = parser.parse_args()
    model = Path(args.model).resolve() if args.model else hub.find_default()
    with tempfile.TemporaryDirectory() as work:
        arms = make_arms(model, Path(work))
        results = {name: [] for name in arms}
        names = list(arms)
        for turn in range(args.runs):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                results[name].append(run(*arms[name], args.max_tokens))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    table = {name: summary(rows) for name, rows in results.items()}
    print_table(table)
    first = results[names[0]][0]["text"]
    other = [name for name in names if any(r["text"] != first for r in results[name])]
    print("another text than the first arm:", ", ".join(other) or "none")
    row = {
        "date": datetime.date.today().isoformat(),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
        "bench": "generate",
        "model": model.name,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "versions": {p: version(p) for p in ("mlx", "mlx-lm", "mlx-glu")},
        "runs": args.runs,
        "max_tokens": args.max_tokens,
        "arms": table,
        "cmd": f"scripts/bench_generate.py --model {model.name} --runs {args.runs}",
    }
    line = json.dumps(row)
    print(line)
    if args.append:
        with (ROOT / "bench" / "results.jsonl").open("a") as file:
            file.write(line + "\n")


def make_arms(model: Path, work: Path) -> dict[str, tuple[str, Path, dict[str, str]]]:
    """Package, folder and environment of each arm.

    The same weights in each form that mlx-lm can be given; converting is lossless
    into float32.
    """
    convert(model, work / "packed", dtype="float32")
    convert(model, work / "float32", dequantize=True, dtype="float32")
    convert(model, work / "bfloat16", dequantize=True, dtype="bfloat16")
    arms = {
        "mlx_glu": ("mlx_glu", model, {}),
        "mlx_glu, MLX's BLAS": ("mlx_glu", model, {"MLX_GLU_BLAS": "none"}),
        "mlx_lm packed, float32 scales": ("mlx_lm", work / "packed", {}),
        "mlx_lm float32": ("mlx_lm", work / "float32", {}),
        "mlx_lm bfloat16": ("mlx_lm", work / "bfloat16", {}),
    }
    openblas = ctypes.util.find_library("openblas")
    if openblas:
        preload = {"LD_PRELOAD": openblas}
        arms["mlx_lm float32, LD_PRELOAD=" + openblas] = (
            "mlx_lm",
            work / "float32",
            preload,
        )
    return arms


def run(package: str, folder: Path, extra: dict[str, str], max_tokens: int) -> dict:
    time.sleep(0.5)  # let the last process's memory go
    command = [sys.executable, "-c", CHILD, package, str(folder), PROMPT]
    started = str(time.time())
    done = subprocess.run(
        [*command, str(max_tokens), started],
        env=os.environ | extra,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def summary(rows: list[dict]) -> dict:
    found = {}
    for metric in METRICS:
        values = sorted(row[metric] for row in rows)
        cuts = statistics.quantiles(values, n=5) if len(values) > 1 else values * 4
        cut = [cuts[0], statistics.median(values), cuts[3]]
        found[metric] = [float(f"{value:.4g}") for value in cut]
    return found


def print_table(table: dict[str, dict]) -> None:
    width = max(map(len, table))
    print(" " * width + "".join(f"{metric:>26}" for metric in METRICS))
    for name, found in table.items():
        cells = [f"{m:.2f} [{a:.2f}, {b:.2f}]" for a, m, b in found.values()]
        print(name.ljust(width) + "".join(f"{cell:>26}" for cell in cells))


def output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if "model name" in x)
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
