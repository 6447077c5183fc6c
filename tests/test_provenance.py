"""provenance.json: what a converted folder was made of, and whether it still is."""

import hashlib
import re
import shutil

import mlx.core as mx
import numpy as np
import pytest
from shared_data import SHARED, requires_shared
from tiny_checkpoint import config_of, token_ids, write_checkpoint
from tiny_tokenizers import llama_metadata

import mlx_glu
from mlx_glu import convert, load_model
from mlx_glu.conversion import provenance
from mlx_glu.conversion.provenance import PROVENANCE
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def source(tmp_path):
    folder = write_checkpoint(
        tmp_path / "hf", config_of("llama", vocab_size=300, head_dim=16)
    )
    write_tokenizer(llama_metadata(), folder)
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_record(source, tmp_path):
    convert(
        source,
        tmp_path / "mlx",
        True,
        q_group_size=32,
        q_overrides={"*.0.*.o_proj": "8"},
        q_skip=["lm_head"],
    )
    record = provenance.read(tmp_path / "mlx")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    versions = record["versions"]
    assert versions["mlx_glu"] == mlx_glu.__version__
    assert {"mlx", "python", "device"} < {*versions}
    assert record["settings"] == {
        "quantize": True,
        "q_group_size": 32,
        "q_mode": "affine",
        "q_overrides": {"*.0.*.o_proj": "8"},
        "q_skip": ["lm_head"],
    }
    assert record["formats"] == {
        "*": "a4g32",
        "model.layers.0.self_attn.o_proj": "a8g32",
        "lm_head": "float",
    }
    assert record["source"]["name"] == "hf"
    assert record["source"]["files"] == {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in source.iterdir()
    }
    made = {*(tmp_path / "mlx").iterdir()}
    assert record["files"] == {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in made
        if path.name not in (PROVENANCE, "README.md")
    }


def test_it_names_no_path_of_the_machine(source, tmp_path):
    """Not even in its notes; the folder may be given away."""
    for file in source.glob("*token*"):
        file.unlink()
    report = convert(source, tmp_path / "mlx")
    assert str(source) in report.notes[-1]
    text = (tmp_path / "mlx" / PROVENANCE).read_text()
    assert "hf has no tokenizer" in text
    assert str(tmp_path) not in text


def test_same_conversions_differ_in_the_date_alone(source, tmp_path, monkeypatch):
    for name, date in (("a", 1), ("b", 1), ("c", 2_000_000_000)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(date))
        convert(source, tmp_path / name, True, q_group_size=32)
    a, b, c = ((tmp_path / name / PROVENANCE).read_text() for name in "abc")
    assert a == b
    assert '"date": "1970-01-01T00:00:01+00:00"' in a
    assert [x == y for x, y in zip(a.splitlines(), c.splitlines(), strict=True)].count(
        False
    ) == 1


@pytest.mark.parametrize("date", ["today", "1e9", "9" * 30])
def test_impossible_date(date, source, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
    with pytest.raises(ValueError, match="SOURCE_DATE_EPOCH is"):
        convert(source, tmp_path / "mlx")


def snapshot(source, cache):
    """A folder as Hugging Face's cache has it: links to files named by content."""
    blobs = cache / "models--org--some--model" / "blobs"
    folder = blobs.parent / "snapshots" / REVISION
    folder.mkdir(parents=True)
    blobs.mkdir()
    for path in source.iterdir():
        # git-lfs holds the weights; small files have git's own, shorter name.
        is_large = path.suffix == ".safetensors"
        blob = blobs / (sha256(path) if is_large else sha256(path)[:40])
        shutil.copyfile(path, blob)
        (folder / path.name).symlink_to(blob)
    return folder


def test_snapshot_of_the_hub(source, tmp_path):
    folder = snapshot(source, tmp_path / "hub")
    convert(folder, tmp_path / "mlx")
    origin = provenance.read(tmp_path / "mlx")["source"]
    assert (origin["name"], origin["revision"]) == ("org/some--model", REVISION)


def test_damaged_download_is_found(source, tmp_path):
    """A bit that fell over on disk: no reader of the format can see it."""
    folder = snapshot(source, tmp_path / "hub")
    blob = (folder / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-3] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its sha256"):
        convert(folder, tmp_path / "mlx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "hub"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "a bit": (lambda f: flip(f / "model.safetensors"), "model.safetensors has sha256"),
    "a line": (
        lambda f: (f / "config.json").write_text("{}"),
        "config.json has 2 bytes",
    ),
    "gone": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "more": (lambda f: (f / "a.safetensors").touch(), "a.safetensors was not there"),
    "record gone": (lambda f: (f / PROVENANCE).unlink(), "provenance.json is missing"),
}


@pytest.mark.parametrize(("change", "line"), CHANGES.values(), ids=CHANGES)
def test_verify(change, line, source, tmp_path):
    convert(source, tmp_path / "mlx")
    (tmp_path / "mlx" / "README.md").write_text("a description of my own")
    assert provenance.verify(tmp_path / "mlx") == []
    change(tmp_path / "mlx")
    (found,) = provenance.verify(tmp_path / "mlx")
    assert found.startswith(line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"a": 1}}',
        '{"files": {"../a": {"size": 1, "sha256": ""}}}',
        '{"files": {"/etc/passwd": {"size": 1, "sha256": ""}}}',
        '{"files": {"a": {"size": 1}}}',
    ],
)
def test_damaged_record(text, tmp_path):
    (tmp_path / PROVENANCE).write_text(text)
    with pytest.raises(ValueError, match=r"provenance\.json"):
        provenance.verify(tmp_path)


def test_no_record(tmp_path):
    assert provenance.read(tmp_path) is None


@requires_shared
@pytest.mark.filterwarnings("ignore")
def test_mlx_lm_is_not_confused(tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm")
    convert(SHARED / "stories260K", tmp_path / "mlx", True, q_group_size=32)
    assert (tmp_path / "mlx" / PROVENANCE).exists()
    model, _ = mlx_lm.load(str(tmp_path / "mlx"))
    ids = mx.array(token_ids())
    expected, ours = np.array(model(ids)), np.array(load_model(tmp_path / "mlx")(ids))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    # And what is made of it has a record of its own.
    convert(tmp_path / "mlx", tmp_path / "again", dequantize=True)
    record = provenance.read(tmp_path / "again")
    assert record["source"]["name"] == "mlx"
    assert PROVENANCE not in record["source"]["files"]
