"""Gemma 3n (text)."""

import reprlib
from collections.abc import Mapping
from typing import Any

from ..fields import Config, flag, size
from ..variants import resolve
from .family import BESIDE, Family, alternating
from .gemma import GEMMA, PER_LAYER, shared_layers

_GEMMA3N = {
    **GEMMA,
    **PER_LAYER,
    "hidden_activation": "gelu_pytorch_tanh",
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 512,
    "sliding_window_pattern": 5,
    "final_logit_softcapping": 30.0,
    "altup_active_idx": 0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "laurel_rank": 64,
    "num_kv_shared_layers": 15,
}


def _one_a_layer(c: Config, key: str, values: object) -> list[Any] | tuple[Any, ...]:
    layers = c["num_hidden_layers"]
    if not isinstance(values, list | tuple) or len(values) != layers:
        raise ValueError(
            f"[config] {key} must have a number for each of the {layers} layers; it "
            f"is {reprlib.repr(values)}"
        )
    return values


#: Where `_one_size` keeps the list.
_LISTED = "intermediate_sizes"


def _one_size(c: Config) -> Config:
    """The first of Gemma 3n's listed sizes where one is expected."""
    sizes = c.get("intermediate_size")
    changed = {k: v for k, v in c.items() if k != _LISTED}
    if isinstance(sizes, list | tuple) and sizes:
        changed |= {"intermediate_size": sizes[0], _LISTED: sizes}
    return changed


def _sizes(c: Config, key: str) -> tuple[int, ...]:
    same = [c[key]] * c["num_hidden_layers"]
    listed = _one_a_layer(c, key, c.get(_LISTED, same))
    return tuple(size({key: value}, key) for value in listed)


def _sparsity(c: Config, key: str) -> tuple[float, ...]:
    """The share of gate activations that each layer cuts off."""
    layers = c["num_hidden_layers"]
    first = 10 if layers > 10 else 0
    given = c.get(key, [0.95] * first + [0.0] * (layers - first))
    for value in _one_a_layer(c, key, given):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= 1 - 2**-24:
            raise ValueError(f"[config] {key} must hold numbers in [0, 1), not {value}")
    if any(given) and resolve(str(c["hidden_activation"])).name != "geglu_tanh":
        raise ValueError(
            f"[config] {key} cuts tanh-GELU alone; hidden_activation is "
            f"{c['hidden_activation']!r}"
        )
    return tuple(map(float, given))


def _active(c: Config, key: str) -> int:
    index, streams = size(c, key, 0), size(c, "altup_num_inputs")
    if index >= streams:
        raise ValueError(
            f"[config] {key} {index} must be below altup_num_inputs {streams}"
        )
    return index


def _nested(c: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-lm knows Gemma 3n's text model as a part of the multimodal one alone."""
    beside = {k: v for k, v in c.items() if k in BESIDE}
    inside = {k: v for k, v in c.items() if k not in ("dtype", "torch_dtype")}
    text = {**_GEMMA3N, **inside, **own}
    return {**beside, "model_type": "gemma3n", "text_config": text}


GEMMA3N = {
    "gemma3n_text": Family(
        _GEMMA3N,
        alternating,
        variant="geglu_tanh",
        qk_norm=True,
        own={
            "intermediate_size": _sizes,
            "activation_sparsity_pattern": _sparsity,
            "num_kv_shared_layers": shared_layers(alternating),
            "vocab_size_per_layer_input": size,
            "hidden_size_per_layer_input": size,
            "altup_num_inputs": size,
            "altup_active_idx": _active,
            "altup_correct_scale": flag,
            "laurel_rank": size,
        },
        normal=_one_size,
        export=_nested,
    ),
}
