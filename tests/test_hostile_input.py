"""Checkpoints from an enemy: one clear line, at once, in little memory.

Each is opened in a child process of little memory, which must not crash: what would
end the process, or eat the memory of the machine, shows as a dead child.
"""

import base64
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import (
    CASES,
    FAMILIES,
    config_of,
    token_ids,
    weights_of,
    write_checkpoint,
)
from torch_writer import save

from mlx_glu import convert, load_model
from mlx_glu.checkpoints.checkpoint import INDEX, open_checkpoint
from mlx_glu.tokenizer import load_tokenizer
from mlx_glu.tokenizer.tokenizer_json_checks import check_charsmap
from mlx_glu.tokenizer.tokenizer_json_checks import check_tokenizer_json as check
from mlx_glu.weights import examine

CONFIG = config_of("llama", num_hidden_layers=1)
IDS = mx.array(token_ids()[:, :5])
GIB = 1 << 30

CHILD = """
import json, resource, sys, time

if sys.platform == "linux":  # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30))
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.tokenizer import load_tokenizer
from mlx_glu.weights import examine

TEXT = "a" * 40 + "! some text, some a\\u0301 more \\ufb00"

def megabytes():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    with open("/proc/self/status") as status:  # Linux's ru_maxrss is the parent's
        return int(status.read().split("VmHWM:")[1].split()[0]) / (1 << 10)

for folder in sys.argv[2:]:
    start, before = time.process_time(), megabytes()
    try:
        if sys.argv[1] == "weights":
            examine(open_checkpoint(folder))
        else:
            tokenizer = load_tokenizer(folder)
            tokenizer.encode(TEXT)
        message = None
    except (ValueError, OSError) as error:
        message = str(error)
    used = time.process_time() - start, megabytes() - before
    print(json.dumps([folder, message, *used]), flush=True)
"""


def outcomes(kind, folders):
    """What a child says of each folder: its message, seconds and megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"RUST_BACKTRACE": "0"},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (rows[-1:], done.stderr[-2000:])
    assert [row[0] for row in rows] == [*map(str, folders)]
    return [row[1:] for row in rows]


def sparse(path, size, start=b"{"):
    path.write_bytes(start)
    os.truncate(path, size)


def header(text):
    return struct.pack("<Q", len(text)) + text


def config(**changes):
    return lambda f: (f / "config.json").write_text(json.dumps(CONFIG | changes))


def weights(content):
    return lambda f: (f / "model.safetensors").write_bytes(content)


def index(content):
    def write(folder):
        content_ = content if isinstance(content, bytes) else json.dumps(content)
        path = folder / INDEX
        path.write_bytes(content_ if isinstance(content_, bytes) else content_.encode())

    return write


def instead(name, make):
    """Put something else in the place of a file."""

    def write(folder):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return write


ROW = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
WEIGHTS = {
    # headers
    "header of 100 MB": lambda f: sparse(
        f / "model.safetensors", 200_000_000, struct.pack("<Q", 100_000_000)
    ),
    "header says 100 MB": weights(header(bytes(8))[:8] + ROW),
    "30 MB of brackets": weights(header(b"[" + b"[]," * 10_000_000 + b"[]]")),
    "30 MB of one name": weights(header(b'{"%s":%s}' % (b"x" * 30_000_000, ROW))),
    "200,000 objects in a row": weights(header(b'{"x":[' + b'{"a":1},' * 200_000)),
    "deep": weights(header(b'{"x":' * 300_000)),
    "one number of 30 MB": weights(header(b'{"x":' + b"9" * 30_000_000 + b"}")),
    "a name twice among 300,000": weights(
        header(b'{"7":0,' + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}")
    ),
    # other kinds of files
    "pipe": instead("model.safetensors", os.mkfifo),
    "pipe as config": instead("config.json", os.mkfifo),
    "folder": instead("model.safetensors", os.mkdir),
    "folder as config": instead("config.json", os.mkdir),
    "endless device": instead("model.safetensors", lambda p: p.symlink_to("/dev/zero")),
    "endless config": instead("config.json", lambda p: p.symlink_to("/dev/zero")),
    "link out": instead("config.json", lambda p: p.symlink_to("/etc/passwd")),
    "link to itself": instead("config.json", lambda p: p.symlink_to(p.name)),
    "pipe as index": instead(INDEX, os.mkfifo),
    # config.json
    "config of 3 GB": lambda f: sparse(f / "config.json", 3 * GIB),
    "config of 10 million values": lambda f: (f / "config.json").write_bytes(
        b'{"a":[' + b"0," * 10_000_000 + b"0]}"
    ),
    "10**12 heads": config(num_attention_heads=10**12),
    "10**12 layers": config(num_hidden_layers=10**12),
    "500 layers": config(num_hidden_layers=500),
    "10**12 experts": config(model_type="mixtral", num_local_experts=10**12),
    "2**62 embeddings": config(vocab_size=2**31 - 1, hidden_size=2**31 - 1),
    "2**62 units": config(intermediate_size=2**31 - 1, hidden_size=2**31 - 1),
    "10**8 heads x size": config(
        num_attention_heads=10**4, num_key_value_heads=10**4, head_dim=10**4
    ),
    "a million layer types": config(layer_types=["full_attention"] * 10**6),
    "NaN": config(rms_norm_eps=float("nan")),
    "infinity": config(rope_theta=float("inf")),
    # the index
    "index of 3 GB": lambda f: sparse(f / INDEX, 3 * GIB),
    "index of brackets": index(b'{"weight_map":[' + b"[]," * 9_000_000 + b"[]]}"),
    "index names 100,000 files": index(
        {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(100_000)}}
    ),
    "index with a file name of 20 MB": index(
        {"weight_map": {"x": "y" * 20_000_000 + ".safetensors"}}
    ),
    "index leads out": index({"weight_map": {"x": "../../../x.safetensors"}}),
    "index with a long name": index({"weight_map": {"x" * 10**6: "y" * 10**6}}),
}


def test_weights(tmp_path):
    folders = []
    for i, spoil in enumerate(WEIGHTS.values()):
        folders.append(write_checkpoint(tmp_path / f"{i}", CONFIG))
        spoil(folders[-1])
    check_outcomes(WEIGHTS, outcomes("weights", folders), tmp_path)


def check_outcomes(cases, found, tmp_path):
    """Every case is refused, in one line that names the file, fast and small."""
    for case, (message, seconds, megabytes) in zip(cases, found, strict=True):
        assert message is not None, f"{case} is accepted"
        assert str(tmp_path) in message, case
        assert "\n" not in message, case
        assert len(message) < 1000 + len(str(tmp_path)), case
        assert seconds < 1.5, (case, seconds)
        assert megabytes < 500, (case, megabytes)


BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": {"a": 0, "b": 1, "ab": 2},
    "merges": [["a", "b"]],
}
STATE = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": BPE,
}


def tokenizer(**changes):
    def write(folder):
        (folder / "tokenizer.json").write_text(json.dumps(STATE | changes))

    return write


def beside(name, value):
    """A good tokenizer.json, and another file."""

    def write(folder):
        tokenizer()(folder)
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name).write_bytes(content)

    return write


def added(index, **changes):
    return beside(
        "tokenizer_config.json",
        {"added_tokens_decoder": {index: {"content": "<x>", **changes}}},
    )


def charsmap(blob):
    text = base64.b64encode(blob).decode()
    return tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": text})


def replaces(*contents, pattern="a"):
    rows = [
        {"type": "Replace", "pattern": {"String": pattern}, "content": content}
        for content in contents
    ]
    return tokenizer(normalizer={"type": "Sequence", "normalizers": rows})


def splits(regex):
    row = {"behavior": "Isolated", "invert": False, "pattern": {"Regex": regex}}
    return tokenizer(pre_tokenizer={"type": "Split", **row})


def template(count):
    row = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [row, {"Sequence": {"id": "B", "type_id": 0}}]
    block = {"single": [row] * count, "pair": pair, "special_tokens": {}}
    return tokenizer(post_processor={"type": "TemplateProcessing", **block})


TOKENIZERS = {
    "3 GB": lambda f: sparse(f / "tokenizer.json", 3 * GIB),
    "60 MB of brackets": lambda f: (f / "tokenizer.json").write_bytes(
        b"[" + b"[]," * 20_000_000 + b"[]]"
    ),
    "deep": lambda f: (f / "tokenizer.json").write_bytes(b"[" * 10**6),
    "a list": lambda f: (f / "tokenizer.json").write_text("[]"),
    "not UTF-8": lambda f: (f / "tokenizer.json").write_bytes(b'{"\xff":1}'),
    "link out": lambda f: (f / "tokenizer.json").symlink_to("/etc/passwd"),
    "endless": lambda f: (f / "tokenizer.json").symlink_to("/dev/zero"),
    "pipe": lambda f: os.mkfifo(f / "tokenizer.json"),
    # What ends the process: Rust aborts where it gets no memory.
    "charsmap of 8 GB": charsmap(b"\0"),
    "charsmap of garbage": charsmap(b"\xff" * 100),
    "charsmap leads out": charsmap(
        struct.pack("<I", 1024) + b"\xff\xff\xff\x7f" * 256 + b"x\0"
    ),
    "replaces 1000 by 1000": replaces(*["a" * 1000] * 5),
    "replaces nothing by much": replaces("a" * 1000, pattern=""),
    "the text 10,000 times": template(10_000),
    # What panics: no Exception of Python's.
    "prefix longer than tokens": tokenizer(
        model=BPE | {"continuing_subword_prefix": "abcdef"}
    ),
    "template of unknown tokens": tokenizer(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "q", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "chunks of 0": tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "backtracking": splits("^(?:a|a)+$"),
    "no unknown token": tokenizer(model=BPE | {"unk_token": "zzz"}),
    "regex in the normalizer": tokenizer(
        normalizer={
            "type": "Replace",
            "pattern": {"Regex": "(a|a)+b"},
            "content": "x",
        }
    ),
    "100,000 steps": tokenizer(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}] * 100_000,
        }
    ),
    "id of 2**40": tokenizer(model=BPE | {"vocab": {"a": 2**40}}),
    # the files beside it
    "added id of 2**31": added(str(2**31)),
    "added id of 5000 digits": added("9" * 5000),
    "added id is negative": added("-1"),
    "added id is infinite": beside(
        "tokenizer_config.json", b'{"added_tokens_decoder":{"1e999":{"content":"x"}}}'
    ),
    "added flag is a word": added("7", special="yes"),
    "added content is a list": added("7", content=["x"]),
    "config of 3 GB": lambda f: [
        tokenizer()(f),
        sparse(f / "tokenizer_config.json", 3 * GIB),
    ],
    "template of 3 GB": lambda f: [
        tokenizer()(f),
        sparse(f / "chat_template.jinja", 3 * GIB),
    ],
    "template links out": lambda f: [
        tokenizer()(f),
        (f / "chat_template.jinja").symlink_to("/etc/passwd"),
    ],
    "template is no text": beside("chat_template.jinja", b"\xff\xfe"),
    "deep config": beside("tokenizer_config.json", b"[" * 10**6),
    "eos is a huge number": beside("generation_config.json", {"eos_token_id": "x"}),
    "eos is negative": beside("generation_config.json", {"eos_token_id": [-1]}),
    # sentencepiece
    "sentencepiece of 3 GB": lambda f: sparse(f / "tokenizer.model", 3 * GIB),
    "sentencepiece of garbage": lambda f: (f / "tokenizer.model").write_bytes(
        b"\x0a\xff\xff\xff\xff\x7f" * 1000
    ),
    "sentencepiece of varints": lambda f: (f / "tokenizer.model").write_bytes(
        b"\x80" * 10**6
    ),
}


def test_tokenizers(tmp_path):
    folders = []
    for i, spoil in enumerate(TOKENIZERS.values()):
        folders.append(tmp_path / f"{i}")
        folders[-1].mkdir()
        spoil(folders[-1])
    found = outcomes("tokenizer", folders)
    # An error of encoding names no file.
    encoding = [row for row in found if str(row[0]).startswith("[encode]")]
    assert len(encoding) <= 4
    for row in encoding:
        row[0] = f"{tmp_path} {row[0]}"
    check_outcomes(TOKENIZERS, found, tmp_path)


def test_a_regex_that_never_ends_is_left(tmp_path):
    """Every start in the text costs less than the library's limit, together minutes."""
    splits("(?:(?:a|a){18}(?!a|$))+")(tmp_path)
    script = CHILD.replace('"a" * 40', '"a" * 2000')
    done = subprocess.run(
        [sys.executable, "-c", script, "tokenizer", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "it takes over 2 seconds" in json.loads(done.stdout)[1]


# What must still work


@pytest.fixture
def hf(tmp_path):
    return write_checkpoint(tmp_path / "hf", CONFIG)


def test_the_cache_of_hugging_face(hf, tmp_path):
    """Every file of a snapshot is a link to a blob of the same model."""
    expected = load_model(hf)(IDS)
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (hf / "LICENSE").write_text("free")
    for i, file in enumerate(sorted(hf.iterdir())):
        file.rename(repo / "blobs" / f"{i:x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:x}")
    assert np.array_equal(load_model(snapshot)(IDS), expected)
    convert(snapshot, tmp_path / "mlx")
    assert (tmp_path / "mlx" / "LICENSE").read_text() == "free"
    (tmp_path / "link").symlink_to(snapshot)  # the folder itself may be a link
    assert np.array_equal(load_model(tmp_path / "link")(IDS), expected)

    other = tmp_path / "hub" / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (repo / "blobs" / "0").rename(other / "0")
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to("../../../models--org--other/blobs/0")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        convert(snapshot, tmp_path / "again")


def test_links_inside_a_folder(hf):
    expected = load_model(hf)(IDS)
    (hf / "data").mkdir()
    (hf / "model.safetensors").rename(hf / "data" / "x")
    (hf / "model.safetensors").symlink_to("data/x")
    assert np.array_equal(load_model(hf)(IDS), expected)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.model", "chat_template.jinja"])
def test_no_private_file_is_copied(name, hf, tmp_path):
    """A converted folder may be given away."""
    secret = tmp_path / "secret"
    secret.write_text("key")
    (hf / name).symlink_to(secret)
    with pytest.raises(ValueError, match=f"{name} is a link out of its folder"):
        convert(hf, tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "vocab.json"])
def test_no_sparse_file_is_copied(name, hf, tmp_path):
    """It takes no room in the source, and all that there is in a copy."""
    sparse(hf / name, 65 << 20)
    with pytest.raises(ValueError, match=f"{name} has 68,157,440 bytes"):
        convert(hf, tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


def test_a_folder_of_licences_is_left_out(hf, tmp_path):
    (hf / "LICENSES").mkdir()
    (hf / "LICENSES" / "MIT").write_text("free")
    (hf / "LICENSE-MIT").write_text("free")
    convert(hf, tmp_path / "mlx")
    assert [p.name for p in (tmp_path / "mlx").glob("LIC*")] == ["LICENSE-MIT"]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_file_name_for_the_terminal(suffix, hf):
    names = {"safetensors": "model\x1b[2J.safetensors", "bin": "pytorch_model\n.bin"}
    (hf / "model.safetensors").unlink()
    save(hf / names[suffix], weights_of(CONFIG))
    with pytest.raises(ValueError, match="rename it") as caught:
        open_checkpoint(hf)
    assert str(caught.value).isprintable()


def test_a_large_header_is_read(tmp_path):
    """20,000 tensors; DeepSeek-V3 has 90,000, in 163 files."""
    rows = {
        f"model.layers.{i % 61}.mlp.experts.{i}.gate_proj.weight": {
            "dtype": "BF16",
            "shape": [1, 1],
            "data_offsets": [2 * i, 2 * i + 2],
        }
        for i in range(20_000)
    }
    folder = write_checkpoint(tmp_path / "hf", CONFIG)
    content = header(json.dumps(rows).encode()) + bytes(40_000)
    (folder / "model.safetensors").write_bytes(content)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.tensors) == 20_000
    assert checkpoint.load(next(iter(rows))).dtype == mx.bfloat16


def test_real_normalizers_pass():
    """LLaMA 2's, Gemma's and T5's."""
    rows = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"Regex": r"[\n\r\t]+"}, "content": " "},
    ]
    normalizer = {"type": "Sequence", "normalizers": rows}
    check(json.dumps(STATE | {"normalizer": normalizer}).encode())


def test_a_real_table_of_characters(tmp_path):
    """NFKC as sentencepiece has it, and what is left of it when bytes change."""
    from sentencepiece import SentencePieceTrainer

    prefix = tmp_path / "spm"
    SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to count", "more of the same words"]),
        model_prefix=str(prefix),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    data = Path(f"{prefix}.model").read_bytes()
    start = data.index(b"nmt_nfkc") + 8
    assert data[start] == 0x12
    size, at = 0, start + 1
    while True:
        size |= (data[at] & 0x7F) << 7 * (at - start - 1)
        at += 1
        if data[at - 1] < 0x80:
            break
    table = data[at : at + size]
    assert check_charsmap(table) == 33  # U+FDFA becomes four words
    for broken in (table[:-1], table[:1000], b"\xff" * 8, table[4:]):
        with pytest.raises(ValueError, match="table of characters"):
            check_charsmap(broken)


# Fuzzing; tests/test_safetensors.py and tests/test_torch_file.py do it to weights

NUMBERS = [0, -1, 1, 7, 2**31 - 1, 2**31, 10**12, 2**63, 0.5, 1e308, math.nan, math.inf]
SCALARS = st.sampled_from([None, True, False, "", "a", "silu", "yarn", *NUMBERS])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), inner),
    ),
    max_leaves=4,
)
KEYS = sorted({key for case in CASES.values() for key in case})
KEYS += ["quantization", "quantization_config", "rope_parameters", "layer_types"]
KEYS += ["text_config", "partial_rotary_factor", "use_bidirectional_attention"]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A folder of every family."""
    root = tmp_path_factory.mktemp("families")
    return {name: write_checkpoint(root / name, CASES[name]) for name in FAMILIES}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
)
def test_random_configs(family, changes, families):
    """Any value under any key: a ValueError of one line, or a model that fits."""
    folder = families[family]
    (folder / "config.json").write_text(json.dumps(CASES[family] | changes))
    message = ""
    try:
        examine(open_checkpoint(folder))
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000 + len(str(folder))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    weight_map=st.one_of(
        VALUES,
        st.dictionaries(
            st.sampled_from(["model.norm.weight", "x", ""]),
            st.one_of(VALUES, st.sampled_from(["model.safetensors", "..", "a\0"])),
        ),
    )
)
def test_random_indexes(weight_map, families):
    folder = families["llama"]
    (folder / "config.json").write_text(json.dumps(CASES["llama"]))
    index({"weight_map": weight_map})(folder)
    message = ""
    try:
        examine(open_checkpoint(folder))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    finally:
        (folder / INDEX).unlink()
    assert "\n" not in message


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(
        ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
    ),
    key=st.sampled_from(
        """bos_token added_tokens_decoder extra_special_tokens chat_template legacy
        additional_special_tokens eos_token_id add_bos_token""".split()  # noqa: SIM905
    ),
    value=VALUES,
)
def test_random_tokenizer_configs(name, key, value, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "tokenizer"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    beside(name, {key: value})(folder)
    message = ""
    try:
        load_tokenizer(folder).encode("ab ba")
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
