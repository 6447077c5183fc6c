"""Models against Hugging Face's logits, and against themselves through a cache."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from shared_data import SHARED, requires_shared
from tiny_checkpoint import (
    CASES,
    FAMILIES,
    HF,
    LAYOUTS,
    config_of,
    hf_weights,
    token_ids,
    weights_of,
    write_checkpoint,
)

from mlx_glu import load_model
from mlx_glu.families import FAMILIES as KNOWN
from mlx_glu.models import MODEL_TYPES

TINY = [
    "llama",
    "llama_tied_mha",
    "mistral_swa",
    "qwen2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "mixtral",
]


def in_chunks(model, ids, size):
    """Logits [B, L, V] of ids [B, L], fed ``size`` tokens at a time."""
    cache = model.make_cache()
    for layer in cache:
        layer.expected = ids.shape[1]  # dynamic and longrope rotate by the length
    parts = [
        model(mx.array(ids[:, i : i + size]), cache)
        for i in range(0, ids.shape[1], size)
    ]
    return np.array(mx.concatenate(parts, axis=1))


def assert_close(logits, reference):
    """The issue's bound: 2e-5 of the largest |logit|."""
    assert np.abs(logits - reference).max() <= 2e-5 * np.abs(reference).max()


@pytest.mark.parametrize("generation", ["v4", "v5"])
@pytest.mark.parametrize("case", CASES)
def test_logits_of_every_family_and_rotation(case, generation, tmp_path):
    """The reference is made by scripts/hf_reference.py."""
    saved = np.load(HF / f"{case}.npz")
    config = CASES[case] if generation == "v4" else json.loads(str(saved["config"]))
    model = load_model(write_checkpoint(tmp_path, config, hf_weights(case)))
    ids, logits = token_ids(), saved["logits"]
    for size in (40, 1, 9):
        ours = in_chunks(model, ids, size)[:, saved["positions"]]
        assert_close(ours, logits)


LAID_OUT = [(case, name) for case, names in LAYOUTS.items() for name in names]


@pytest.mark.parametrize(("case", "layout"), LAID_OUT)
def test_logits_whatever_the_layout(case, layout, tmp_path):
    """Other writers' names and packings of the same weights give the same logits."""
    saved, weights = (
        np.load(HF / f"{case}.npz"),
        LAYOUTS[case][layout](hf_weights(case)),
    )
    model = load_model(write_checkpoint(tmp_path, CASES[case], weights))
    ours = np.array(model(mx.array(token_ids())))[:, saved["positions"]]
    assert_close(ours, saved["logits"])


@requires_shared
@pytest.mark.parametrize("config_name", ["config.json", "config.legacy.json"])
@pytest.mark.parametrize("name", TINY)
def test_logits_are_hugging_faces(name, config_name, tmp_path):
    source = SHARED / "tiny" / name
    shutil.copy(source / "model.safetensors", tmp_path)
    shutil.copy(source / config_name, tmp_path / "config.json")
    model = load_model(tmp_path)
    reference = np.load(source / "reference.npz")
    ids, logits = reference["input_ids"], reference["logits_f64"]
    for size in (ids.shape[1], 1, 5, 17):
        assert_close(in_chunks(model, ids, size), logits)

    greedy = reference["greedy"][0].tolist()  # after 12 tokens of the first row
    inputs, tokens, cache = greedy[:12], greedy[:12], model.make_cache()
    while len(tokens) < len(greedy):
        last = model(mx.array([inputs]), cache, last_only=True)
        inputs = [int(mx.argmax(last[0, -1]))]
        tokens += inputs
    assert tokens == greedy


@requires_shared
def test_trained_model_has_the_reference_logits():
    folder = SHARED / "stories260K"
    reference = np.load(folder / "reference.npz")
    model = load_model(folder)
    ours = np.array(model(mx.array(reference["input_ids"])))[0]
    assert_close(ours, reference["logits_f64"])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_cache_changes_nothing(model_type, tmp_path):
    """Prefill, token by token and odd chunks agree, windows shorter than text."""
    model = load_model(write_checkpoint(tmp_path / "hf", config_of(model_type)))
    ids = token_ids()
    whole = in_chunks(model, ids, 40)
    assert np.isfinite(whole).all()
    for size in (1, 3, 8, 9, 23):
        assert_close(in_chunks(model, ids, size), whole)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_last_only_is_the_last_row(model_type, tmp_path):
    model = load_model(write_checkpoint(tmp_path / "hf", config_of(model_type)))
    ids = mx.array([[5, 6, 7, 8]])
    # Another number of rows may sum in another order.
    assert_close(np.array(model(ids, last_only=True)), np.array(model(ids))[:, -1:])


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "gemma2", "gemma3_text"])
def test_windows_matter_and_end(model_type, tmp_path):
    """A token beyond every window's reach changes nothing; one inside does."""
    layers = config_of(model_type, num_hidden_layers=1)
    if model_type == "qwen2":
        layers["max_window_layers"] = 0
    model = load_model(write_checkpoint(tmp_path / "hf", layers))
    ids = mx.array([[9] * 20])
    far, near = mx.array([[3] + [9] * 19]), mx.array([[9] * 12 + [3] + [9] * 7])
    last = np.array(model(ids))[0, -1]
    assert_close(np.array(model(far))[0, -1], last)
    assert np.abs(np.array(model(near))[0, -1] - last).max() > 1e-3


def test_every_family_has_a_model_and_a_test():
    assert KNOWN.keys() == MODEL_TYPES.keys() == FAMILIES.keys()


def test_head_decides_when_config_is_silent(tmp_path):
    """Where tie_word_embeddings is missing, the tensors decide and a note says so."""
    config = config_of("llama", tie_word_embeddings=None)
    folder = write_checkpoint(tmp_path / "untied", config)
    model = load_model(folder)
    assert not model.config.tie_word_embeddings
    assert "lm_head" in model.notes[0]
    weights = mx.load(str(folder / "model.safetensors"))
    del weights["lm_head.weight"]
    tied = load_model(write_checkpoint(tmp_path / "tied", config, weights))
    assert tied.config.tie_word_embeddings
    assert "no lm_head" in tied.notes[0]


def test_hidden_act_is_obeyed(tmp_path):
    """llama with hidden_act gelu computes the exact GELU, not SiLU."""
    weights = None
    logits = {}
    for act in ("silu", "gelu"):
        config = config_of("llama", hidden_act=act)
        folder = write_checkpoint(tmp_path / act, config, weights)
        weights = mx.load(str(folder / "model.safetensors"))
        model = load_model(folder)
        logits[model.config.variant] = np.array(model(mx.array([[1, 2, 3]])))
    assert np.abs(logits["geglu"] - logits["swiglu"]).max() > 1e-3


def test_gemma_is_tanh_whatever_hidden_act_says(tmp_path):
    model = load_model(
        write_checkpoint(tmp_path, config_of("gemma", hidden_act="gelu"))
    )
    assert model.config.variant == "geglu_tanh"
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_float32_norms_do_not_widen_the_model(model_type, dtype, tmp_path):
    """As a GPU holds it: a 16-bit model whose norms are float32 computes in 16 bits."""
    config = config_of(model_type)
    weights = {k: mx.array(v) for k, v in weights_of(config).items()}
    mixed = {
        k: v if "norm" in k else v.astype(getattr(mx, dtype))
        for k, v in weights.items()
    }
    folder = tmp_path / "hf"
    write_checkpoint(folder, config)
    mx.save_safetensors(str(folder / "model.safetensors"), mixed)
    model = load_model(folder, as_stored=True)
    cache = model.make_cache()
    logits = model(mx.array([[1, 2, 3]]), cache)
    assert logits.dtype == cache[0].keys.dtype == getattr(mx, dtype)
