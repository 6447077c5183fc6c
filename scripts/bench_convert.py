"""Time and memory of a conversion, mlx_glu beside mlx-lm, on the same checkpoint.

    .venv/bin/python scripts/bench_convert.py --blocks 3

The checkpoint is synthetic: the sizes of a 1.5B model in 12 files of bfloat16, 3 GB
(--small: a twelfth of that). Each run is a fresh process that converts and ends; the
arms take turns, there and back again. What it wrote is on disk before the next run,
and the second column of times includes that wait: mlx-lm leaves it to the system,
mlx_glu waits itself. Peak memory is the process's resident set at its largest.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx

from mlx_glu.paired import compare, interleave, spread
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny_tokenizers import llama_metadata

LARGE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
SMALL = LARGE | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 10,
    "vocab_size": 32000,
}
SETTINGS = {
    "as it is": {},
    "4-bit": {"quantize": True, "q_bits": 4},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
}
PACKAGES = ("mlx_glu", "mlx_lm")
CHILD = """
import importlib, json, resource, sys
package, source, target, settings = sys.argv[1:]
convert = importlib.import_module(package).convert
convert(source, target, **json.loads(settings))
try:  # ru_maxrss begins with what the parent process had
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
except FileNotFoundError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--memory-limit", type=int, metavar="GB", help="of each run")
    args = parser.parse_args()
    if args.memory_limit:
        limit = args.memory_limit << 30
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with tempfile.TemporaryDirectory() as work:
        source = write_checkpoint(Path(work) / "hf", SMALL if args.small else LARGE, 12)
        gb = sum(f.stat().st_size for f in source.iterdir()) / 1e9
        print(f"{gb:.2f} GB in {len([*source.glob('*.safetensors')])} files; CPU")
        heads = ("", "seconds", "faster", "until on disk", "faster")
        print("".join(f"{head:24}" for head in heads) + " peak MB")
        for name in args.settings:
            measure(name, source, Path(work) / "mlx", args.blocks)


def write_checkpoint(folder: Path, sizes: dict[str, int], parts: int) -> Path:
    """A LLaMA of random bfloat16 weights, tied, in ``parts`` files with an index."""
    folder.mkdir(parents=True)
    K, N = sizes["hidden_size"], sizes["intermediate_size"]
    head_dim = K // sizes["num_attention_heads"]
    config = sizes | {
        "model_type": "llama",
        "head_dim": head_dim,
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(llama_metadata(), folder)
    kv = sizes["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes["vocab_size"], K)
    }
    for i in range(sizes["num_hidden_layers"]):
        block = {
            "self_attn.q_proj": (K, K),
            "self_attn.k_proj": (kv, K),
            "self_attn.v_proj": (kv, K),
            "self_attn.o_proj": (K, K),
            "mlp.gate_proj": (N, K),
            "mlp.up_proj": (N, K),
            "mlp.down_proj": (K, N),
            "input_layernorm": (K,),
            "post_attention_layernorm": (K,),
        }
        shapes |= {f"model.layers.{i}.{k}.weight": shape for k, shape in block.items()}
    shapes["model.norm.weight"] = (K,)
    total, done = sum(map(math.prod, shapes.values())), 0
    files: list[dict[str, mx.array]] = [{} for _ in range(parts)]
    noise = mx.random.normal((1 << 22,)).astype(mx.bfloat16) * 0.02
    weight_map = {}
    for name, shape in shapes.items():
        part = done * parts // total
        size = math.prod(shape)
        repeated = mx.tile(noise, -(-size // noise.size))[:size].reshape(shape)
        files[part][name] = repeated
        weight_map[name] = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        done += size
    for name, tensors in zip(
        sorted({*weight_map.values()}), filter(None, files), strict=True
    ):
        mx.save_safetensors(str(folder / name), tensors)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def run(package: str, source: Path, target: Path, settings: dict) -> int:
    """Convert in a fresh process; the most memory it had, in bytes."""
    arguments = [package, str(source), str(target), json.dumps(settings)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{package}: {(done.stderr.splitlines() or ['killed'])[-1]}")
    return int(done.stdout.splitlines()[-1])


def measure(name: str, source: Path, target: Path, blocks: int) -> None:
    """Print one line for each package."""
    peaks: dict[str, list[int]] = {package: [] for package in PACKAGES}
    on_disk: dict[str, list[float]] = {package: [] for package in PACKAGES}
    arms = {
        package: partial(run, package, source, target, SETTINGS[name])
        for package in PACKAGES
    }

    def timer(package: str, work: Callable[[], int]) -> float:
        start = time.perf_counter()
        peaks[package].append(work())
        seconds = time.perf_counter() - start
        os.sync()
        on_disk[package].append(time.perf_counter() - start)
        shutil.rmtree(target)
        os.sync()
        return seconds

    exits = interleave(arms, blocks, timer=timer, warmup=0)
    # Two runs of each block, as `interleave` itself takes their mean.
    disk = {
        package: [(a + b) / 2 for a, b in zip(runs[::2], runs[1::2], strict=True)]
        for package, runs in on_disk.items()
    }
    for package in PACKAGES:
        cells = [f"{name:10}{package:9}"]
        for seconds in (exits, disk):
            low, median, high = spread(seconds[package])
            faster = compare(seconds["mlx_lm"], seconds[package])
            cells.append(f"{median:8.2f} [{low:.2f}, {high:.2f}]")
            if package == "mlx_glu":
                cells.append(
                    f"{faster.speedup:6.2f}x [{faster.low:.2f}, {faster.high:.2f}]"
                )
            else:
                cells.append(" " * 21)
        print(
            "".join(f"{c:24}" for c in cells) + f"{max(peaks[package]) >> 20:8}",
            flush=True,
        )


if __name__ == "__main__":
    main()
