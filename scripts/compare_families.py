"""Our logits and mlx-lm's against Hugging Face's, family by family.

Writes each case of tests/tiny_checkpoint.py as a Hugging Face folder, with the config
of transformers 4 and that of transformers 5, and loads it with `mlx_glu.load_model`
and with mlx-lm's `load_model`: the same float32 weights, on the CPU. Each runs the 40
tokens in one go and token by token through its cache. mlx-lm gets a process for each
case, as a crash must not end the comparison; of the layouts that a case has on disk,
the one counts with which it comes closest. Exit code 1 if ours is beyond the bound.

    .venv/bin/python scripts/compare_families.py [FAMILY...] [--write README.md]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_glu import load_model  # before MLX: it brings the BLAS

import mlx.core as mx  # isort: skip
import numpy as np

SCRIPTS = Path(__file__).parent
sys.path.insert(0, str(SCRIPTS.parent / "tests"))

import tiny_checkpoint as tiny  # noqa: E402

BEGIN, END = "<!-- families -->", "<!-- /families -->"
GENERATIONS = ("transformers 4", "transformers 5")
#: What the tests of our models demand; what is worse is set in bold.
BOUND = 2e-5
#: Rotations that depend on the length of the text. In the reference it is that of the
#: whole, which mlx-lm cannot be told while it reads token by token.
BY_LENGTH = ("dynamic", "longrope")
#: Logits of the chunks of a text, one after the other.
Run = Callable[[list[np.ndarray]], list[mx.array]]
HEAD = "family|ours, one go|ours, by token|" + "|".join(
    f"mlx-lm, {generation} config" for generation in GENERATIONS
)
CAPTION = """
Worst |difference| from Hugging Face's float64 logits, as a share of the largest
|logit|: tiny checkpoints of random float32 weights, 40 tokens, on the CPU. Ours is the
worse of both config generations, mlx-lm's the worse of one go and token by token (of
dynamic and longrope rotations one go alone), or the first words of its error, which is
about a setting of this case: other checkpoints of the family may load. Bold is above
{bound}. transformers {transformers}, mlx-lm {mlx_lm}, MLX {mlx};
`.venv/bin/python scripts/compare_families.py --write README.md` makes this table.
"""


def main() -> int:
    args = parse()
    mx.set_default_device(mx.cpu)
    if args.mlx_lm:
        run_mlx_lm(*args.mlx_lm)
        return 0
    rows, wrong = [HEAD.split("|"), ["---"] * (1 + HEAD.count("|"))], []
    for case in cases(args.families):
        ours, theirs = compare(case)
        wrong += [case] * (max(ours) > BOUND)
        rows.append([name_of(case), *map(shown, [*ours, *theirs])])
        print(*rows[-1], sep="  ", file=sys.stderr)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    section = f"\n{table}\n{caption()}"
    print(section)
    if wrong:
        print("ours is wrong, nothing is written:", *wrong, file=sys.stderr)
    elif args.write:
        write(args.write, section)
    return bool(wrong)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("families", nargs="*", metavar="FAMILY", help="only these model types")
    add("--write", type=Path, metavar="FILE", help=f"put it between {BEGIN} and {END}")
    add("--mlx-lm", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.families) - set(tiny.FAMILIES)
    if unknown:
        parser.error(f"no family {min(unknown)!r}: {', '.join(tiny.FAMILIES)}")
    if args.write and args.families:
        parser.error("--write takes all families; leave the names out")
    return args


def cases(families: list[str]) -> list[str]:
    """The cases in the order of the families, each before its settings."""
    kinds = list(tiny.FAMILIES)
    wanted = [c for c in tiny.CASES if kind_of(c) in (families or kinds)]
    return sorted(wanted, key=lambda case: kinds.index(kind_of(case)))


def kind_of(case: str) -> str:
    return str(case if case in tiny.FAMILIES else tiny.CASES[case]["model_type"])


def name_of(case: str) -> str:
    kind = kind_of(case)
    base = f"{kind.removesuffix('_text')}_"
    return kind if case == kind else f"{kind}, {case.removeprefix(base)}"


def compare(case: str) -> tuple[list[float], list[float | str]]:
    """Our worst differences, in one go and by token; mlx-lm's by generation."""
    v5 = json.loads(str(reference(case)["config"]))
    weights = tiny.hf_weights(case)
    layouts: list[Any] = [dict, *tiny.LAYOUTS.get(case, {}).values()]
    ours: list[list[float]] = []
    with tempfile.TemporaryDirectory() as root:
        for generation, config in zip(GENERATIONS, (tiny.CASES[case], v5), strict=True):
            for i, lay in enumerate(layouts):
                folder = Path(root, generation, str(i))
                tiny.write_checkpoint(folder, config, lay(weights))
            model = load_model(Path(root, generation, "0"))
            ours.append(differences(case, by_ours(model)))
        theirs = ask_mlx_lm(case, root)
    return [max(both) for both in zip(*ours, strict=True)], theirs


def reference(case: str) -> Any:
    return np.load(tiny.HF / f"{case}.npz")


def differences(case: str, run: Run, *, by_token: bool = True) -> list[float]:
    """Worst differences in one go and, if asked for, token by token."""
    ids, saved = tiny.token_ids(), reference(case)
    logits, at = saved["logits"], saved["positions"]
    found = []
    for size in (ids.shape[1], 1)[: 1 + by_token]:
        parts = run([ids[:, i : i + size] for i in range(0, ids.shape[1], size)])
        difference = np.array(mx.concatenate(parts, axis=1))[:, at] - logits
        share = np.abs(difference).max() / np.abs(logits).max()
        found.append(float(share) if np.isfinite(share) else math.inf)
    return found


def by_ours(model: Any) -> Run:
    def run(chunks: list[np.ndarray]) -> list[mx.array]:
        cache = model.make_cache()
        for layer in cache:
            layer.expected = sum(chunk.shape[1] for chunk in chunks)
        return [model(mx.array(chunk), cache) for chunk in chunks]

    return run


def by_mlx_lm(model: Any) -> Run:
    from mlx_lm.models.cache import make_prompt_cache

    def run(chunks: list[np.ndarray]) -> list[mx.array]:
        cache = make_prompt_cache(model)
        return [model(mx.array(chunk), cache=cache) for chunk in chunks]

    return run


def ask_mlx_lm(case: str, root: str) -> list[float | str]:
    """For each generation its worst difference, or what it says."""
    found: list[float | str] = []
    while len(found) < len(GENERATIONS):
        command = [sys.executable, __file__, "--mlx-lm", case, root, str(len(found))]
        done = subprocess.run(command, capture_output=True, text=True)
        found += map(json.loads, re.findall("^answer (.*)$", done.stdout, re.M))
        if done.returncode:
            found.append(f"crash: exit code {done.returncode}")
    return found


def run_mlx_lm(case: str, root: str, first: str) -> None:
    """In a process of its own: print an answer for each generation from one on."""
    from mlx_lm.utils import load_model as load

    said = json.dumps(tiny.CASES[case])
    by_token = not any(word in said for word in BY_LENGTH)
    for generation in GENERATIONS[int(first) :]:
        found, error = [], ""
        for folder in sorted(Path(root, generation).iterdir()):
            try:
                run = by_mlx_lm(load(folder)[0])
                found.append(max(differences(case, run, by_token=by_token)))
            except Exception as failure:  # of any kind: it is what a user gets to see
                error = f"{type(failure).__name__}: {failure}"
        print("answer", json.dumps(min(found) if found else error), flush=True)


def shown(cell: float | str) -> str:
    if isinstance(cell, str):
        words = re.split(r"[:.]\s", f"{cell}\n")
        first = textwrap.shorten(": ".join(words[:2]), 60, placeholder=" ...")
        return f"`{first.replace('|', ' ')}`"
    text = f"{cell:.2f}" if cell >= 0.01 else f"{cell:.0e}".replace("e-0", "e-")
    return text if cell <= BOUND else f"**{text}**"


def caption() -> str:
    made = re.search(
        r"transformers==([\d.]+)", (SCRIPTS / "hf_reference.py").read_text()
    )
    assert made
    return CAPTION.format(
        bound=shown(BOUND),
        transformers=made[1],
        mlx_lm=version("mlx-lm"),
        mlx=mx.__version__,
    )


def write(file: Path, section: str) -> None:
    """Put the section between its markers."""
    text = file.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{file} needs one {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    file.write_text(f"{before}{BEGIN}{section}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    sys.exit(main())
