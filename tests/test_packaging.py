"""What is built and installed: every file a user needs, wherever it is installed."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {path.name for path in (ROOT / "metal").iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, as ``python -m build`` makes them here."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
    done = subprocess.run([*command, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel_carries_metal_and_types(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"mlx_glu/metal/{name}" for name in SOURCES} <= names
    assert "mlx_glu/py.typed" in names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "mlx_glu").rglob("*.py")}
    assert modules <= names
    assert not any(name.startswith("tests/") for name in names)


def test_wheel_alone_runs(built, tmp_path):
    """Unpacked somewhere else, the package finds its kernels and its command."""
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import mlx_glu, mlx_glu.metal_source as metal_source;"
        "assert mlx_glu.__file__.startswith(__import__('os').getcwd()), mlx_glu;"
        "assert 'struct' in metal_source.read('act.h');"
        "from mlx_glu.cli import main; main(['variants'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "swiglu" in done.stdout


def test_sdist_builds_the_same_wheel(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {f"metal/{name}" for name in SOURCES} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "mlx_glu/__init__.py"} <= names
