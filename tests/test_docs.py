"""The documents say what is true: paths, commands, variants, structure."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from mlx_glu.cli import make_parser
from mlx_glu.variants import VARIANTS

ROOT = Path(__file__).parents[1]
DOCS = [p for d in ("", "metal/", "bench/", "docs/") for p in ROOT.glob(f"{d}*.md")]
DOCS += ROOT.glob("mlx_glu/*/README.md")
PACKAGE = ROOT / "mlx_glu"

#: What the user makes or names, so that no clone has it.
MADE = {
    "model.gguf",
    "serve.py",
    "provenance.json",
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
}


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_exist(doc):
    text = re.sub(r"```.*?```", "", doc.read_text(), flags=re.S)
    paths = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text)
    suffixes = (".py", ".h", ".md", ".metal", ".json", ".jsonl", ".npz", ".toml", "/")
    named = {p for p in paths if p.endswith(suffixes) or p.startswith("scripts/")}
    missing = {
        p for p in named - MADE if not any((d / p).exists() for d in (ROOT, doc.parent))
    }
    assert not missing


def test_tree_is_the_repository():
    """README's tree has every module and nothing else."""
    tree = re.search(r"```text\n(mlx_glu/.*?)```", README, re.S)[1]
    folders, listed = [], set()
    for line in tree.splitlines():
        name = line.split()[0] if line.strip() else ""
        depth = (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            folders[depth:] = [name]
            listed.add("".join(folders))
        elif name:
            listed.add("".join(folders[:depth]) + name)
    assert {p for p in listed if not (ROOT / p).exists()} == set()
    modules = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*.py")}
    spared = {p for p in modules if p.endswith(("__init__.py", "__main__.py"))}
    for guide in PACKAGE.glob("*/README.md"):  # has a table of its own
        here = f"mlx_glu/{guide.parent.name}/"
        named = set(re.findall(r"`(\w+\.py)`", guide.read_text()))
        listed |= {here + name for name in named}
    assert modules - spared - listed == set()


README = (ROOT / "README.md").read_text()


def test_commands_parse():
    """Every command line shown is one that the parser takes."""
    parser = make_parser()
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", README, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    shown = [x.lstrip("$ ") for x in lines if x.lstrip("$ ").startswith("mlx-glu ")]
    assert len(shown) >= 5
    for line in shown:
        words = shlex.split(line.split(" < ")[0], comments=True)
        assert parser.parse_args(words[1:]).run


def test_variant_table_is_the_table():
    section = README.split("## The GLU family")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.M)
    table = [
        (v.name, ", ".join(f"`{act}`" for act in v.hf_acts) or "-", v.source)
        for v in VARIANTS.values()
    ]
    shown = [(name, *(c.strip() for c in rest.split("|")[1:])) for name, rest in rows]
    assert shown == table


#: Lower modules first; a module imports only from rows above its own.
LAYERS = [
    {"variants", "tracing", "paired", "blas", "cache", "sample", "metal_source"}
    | {"packing", "user_cache", "tables", "untrusted", "hashing", "tensor_info"}
    | {"parts"},
    {"dispatch", "fields", "metal_sim"},
    {"jit"},
    {"quantization", "rope", "families", "tokenizer"},
    {"rope_config", "projection", "gathered"},
    {"config"},
    {"checkpoints", "description"},
    {"hub", "grouping"},
    {"reference"},
    {"checks", "kernels", "elementwise", "stock"},
    {"fused"},
    {"choosing", "linear_layers"},
    {"ops"},
    {"lean"},
    {"feed_forward"},
    {"layers", "experts"},
    {"training"},
    {"models"},
    {"weights"},
    {"loading", "warming", "prefill"},
    {"conversion", "proof"},
    {"tuning"},
    {"fusion"},
    {"generation", "inspection"},
    {"mlx_lm_engine"},
    {"bench"},
    {"evaluation"},
    {"science"},
    {"commands"},
    {"cli"},
]
#: Imported from below when a user's GPU needs it.
LATE = {("choosing", "tuning")}


def test_imports_go_down():
    rank = {name: i for i, row in enumerate(LAYERS) for name in row}
    wrong = set()
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        own = parts[0]
        if own in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            # A module's level counts the dots up to the package.
            if not isinstance(node, ast.ImportFrom) or node.level != len(parts):
                continue
            targets = [node.module] if node.module else [a.name for a in node.names]
            for target in targets:
                name = target.split(".")[0]
                if name in rank and rank[name] >= rank[own]:
                    wrong.add((own, name))
    assert wrong <= LATE, wrong


def test_nothing_foreign_is_imported():
    """No torch, no transformers; one file may import mlx-lm, one build Metal kernels.

    That one imports it inside functions, as it is an extra.
    """
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        line = re.compile(r"^( *)(?:import|from) (torch|transformers|mlx_lm)\b", re.M)
        foreign = {(bool(indent), name) for indent, name in line.findall(text)}
        is_engine = file == PACKAGE / "mlx_lm_engine.py"
        assert foreign == ({(True, "mlx_lm")} if is_engine else set()), file
        calls = {n.attr for n in ast.walk(ast.parse(text)) if type(n) is ast.Attribute}
        # golden.py asks MLX for the text it would compile, and runs nothing.
        assert file.name in ("jit.py", "golden.py") or "metal_kernel" not in calls, file
