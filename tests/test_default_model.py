"""The default model end to end: real weights, fetched and converted by the command."""

import json
import math
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest
from shared_data import SHARED, requires_shared
from test_tokenizer import check_expected

from mlx_glu import blas, convert, hub, load, load_model
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.tokenizer import load_tokenizer

pytestmark = pytest.mark.network


def run(*args):
    command = [sys.executable, "-m", "mlx_glu", *args]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder():
    """Where generate finds the default model; the first test run makes it."""
    folder = hub.default_folder()
    if not (folder / "config.json").exists():
        done = run("convert")
        if done.returncode:
            pytest.skip(f"cannot be had here: {done.stderr.splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def test_it_knows_the_capital_of_france(folder):
    start = time.monotonic()
    done = run("generate", "--prompt", "What is the capital of France?")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.count("\n") == 1
    assert "prompt_tps" in done.stderr
    assert time.monotonic() - start < 30


def test_tokenizer_is_smollm2s(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Hello") == [19556]
    assert tokenizer.eos_token_ids == {2}


@requires_shared
def test_expected_encodings(folder):
    check_expected(load_tokenizer(folder), "smollm2", special=[1, 4093, 198, 6004, 2])


#: Hugging Face, float32, 511 predictions on the same weights.
PERPLEXITY = {"wikitext2-test.tokens.txt": 16.980, "tinyshakespeare.txt": 36.073}


@requires_shared
@pytest.mark.parametrize("text", PERPLEXITY)
def test_perplexity_is_hugging_faces(text, loaded, folder):
    if not (hub.cache_folder() / hub.GGUF).exists():
        pytest.skip("the reference is of the GGUF file's weights")
    if not blas.is_fast():
        pytest.skip("takes minutes with MLX's own BLAS; install an OpenBLAS")
    model, tokenizer = loaded
    corpus = (SHARED / "corpora" / text).read_text("utf-8")
    ids = tokenizer.encode(corpus[:20_000])[:512]
    logits = np.array(model(mx.array([ids]))[0]).astype(np.float64)
    top = logits.max(axis=-1)
    total = np.log(np.exp(logits - top[:, None]).sum(axis=-1)) + top
    loss = [total[i] - logits[i, ids[i + 1]] for i in range(511)]
    assert math.exp(np.mean(loss)) == pytest.approx(PERPLEXITY[text], abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_mlx_lm_opens_it(folder, tmp_path):
    """In float32: MLX's 16-bit quantized products are wrong by percents on a CPU."""
    utils = pytest.importorskip("mlx_lm.utils")
    convert(folder, tmp_path / "f32", dtype="float32")
    model, tokenizer = utils.load(str(tmp_path / "f32"))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert ids == load_tokenizer(folder).apply_chat_template(messages)
    theirs = np.array(model(mx.array([ids])))
    ours = np.array(load_model(tmp_path / "f32", as_stored=True)(mx.array([ids])))
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_gguf_groups_arrive_bit_for_bit(folder):
    """The conversion kept every packed weight, scale and bias of the GGUF file."""
    path = hub.cache_folder() / hub.GGUF
    if not path.exists():
        pytest.skip("the default model came from the Hub")
    source, made = open_checkpoint(path), open_checkpoint(folder)
    packed = [name for name in made.tensors if ".mlp." in name or ".v_proj." in name]
    assert len(packed) == 30 * 4 * 3
    raw = mx.load(str(path))
    for name in packed:
        assert mx.array_equal(made.load(name), source.load(name)), name
    up = "model.layers.7.mlp.up_proj.weight"
    assert mx.array_equal(made.load(up), raw["blk.7.ffn_up.weight"])
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["group_size"] == 32
