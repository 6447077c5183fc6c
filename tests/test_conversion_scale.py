"""Memory of conversions: a few tensors, however large the model and whatever format."""

import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_glu.checkpoints.safetensors import SafetensorsFile
from mlx_glu.conversion import row_packing
from mlx_glu.quantization import MODES, Quantization

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench_convert import LARGE, SETTINGS, SMALL, run, write_checkpoint  # noqa: E402

reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TINY = SMALL | {"hidden_size": 96, "num_hidden_layers": 1, "vocab_size": 300}


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """Bytes that Python, MLX and a tokenizer take, whatever is converted."""
    folder = tmp_path_factory.mktemp("tiny")
    source = write_checkpoint(folder / "hf", TINY, 1)
    return run("mlx_glu", source, folder / "mlx", {})


def two_shards_and_a_tensor(source):
    """The bound: bytes of the two largest files and of the largest tensor."""
    files = [SafetensorsFile(path) for path in source.glob("*.safetensors")]
    tensors = [info.nbytes for file in files for info in file.tensors.values()]
    sizes = sorted(file.path.stat().st_size for file in files)
    assert sum(tensors) > 1.5 * (sum(sizes[-2:]) + max(tensors))
    return sum(sizes[-2:]) + max(tensors)


@reads_proc
@pytest.mark.parametrize(
    "settings", [*SETTINGS.values(), {"check": True}], ids=[*SETTINGS, "checked"]
)
def test_memory(settings, idle, tmp_path):
    """A model of 220 MB in 11 files, its embeddings 49 MB."""
    source = write_checkpoint(tmp_path / "hf", SMALL, 12)
    peak = run("mlx_glu", source, tmp_path / "mlx", settings)
    assert peak - idle < two_shards_and_a_tensor(source)


@pytest.mark.slow
@reads_proc
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_memory_of_a_large_model(settings, idle, tmp_path):
    """3 GB in 12 files, the sizes of a real 1.5B model."""
    source = write_checkpoint(tmp_path / "hf", LARGE, 12)
    peak = run("mlx_glu", source, tmp_path / "mlx", settings)
    assert peak - idle < two_shards_and_a_tensor(source)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1001, 256), (5, 77, 128)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_slices_have_the_same_bits(mode, shape, dtype, monkeypatch):
    """Whatever the number of rows, those of stacked experts too; and their size."""
    monkeypatch.setattr(row_packing, "SLICE", 1 << 12)
    dense = mx.random.normal(shape, key=mx.random.key(1))
    sizes = mx.random.randint(-24, 12, (*shape[:-1], 1), key=mx.random.key(2))
    dense = (dense * mx.power(2.0, sizes)).astype(dtype)
    dense[..., 3, :64] = 0
    dense[..., 4, :64] = dense[..., 4, :1]
    for bits in MODES[mode].bits:
        form = Quantization(MODES[mode].group_sizes[0], bits, mode)
        packed, whole = (
            row_packing.pack(dense, form),
            mx.quantize(dense, **form.as_config()),
        )
        assert [a.shape for a in packed] == [a.shape for a in whole]
        assert all(mx.array_equal(a, b) for a, b in zip(packed, whole, strict=True))
