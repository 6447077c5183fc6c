"""Read one key of a config.json, or say in a ValueError what is wrong with it."""

import reprlib
from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

#: Far above any model; a damaged config must not build layers for minutes.
_LIMITS = {
    "num_hidden_layers": 500,
    "num_attention_heads": 10000,
    "head_dim": 10000,
    "num_experts": 10000,
    "num_local_experts": 10000,
}

#: MLX computes in float32, where smaller numbers are 0 and larger ones infinite.
LEAST, MOST = 2.0**-126, 2.0**127


def size(c: Config, key: str, least: int = 1) -> int:
    """An integer that MLX can count to."""
    value, limit = c.get(key), _LIMITS.get(key, 2**31 - 1)
    if not isinstance(value, int) or value is True or not least <= value <= limit:
        got = "is missing" if value is None else f"is {reprlib.repr(value)}"
        raise ValueError(
            f"[config] {key} must be an integer from {least} to {limit}; it {got}"
        )
    return value


def number(c: Config, key: str, most: float = MOST) -> float:
    """A positive number that float32 holds."""
    value = c.get(key)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not LEAST <= value <= most
    ):
        limit = f" up to {most:g}" if most < MOST else ""
        raise ValueError(
            f"[config] {key} must be a positive number{limit}; "
            f"it is {reprlib.repr(value)}"
        )
    return float(value)


def optional(c: Config, key: str) -> float | None:
    """As `number`, or None where the key is missing or null."""
    return None if c.get(key) is None else number(c, key)


def flag(c: Config, key: str, default: bool = False) -> bool:
    """True or false, never a word or a number."""
    value = c.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(
            f"[config] {key} must be true or false; it is {reprlib.repr(value)}"
        )
    return value


def block(c: Config, key: str) -> dict[str, Any]:
    """The object at ``key`` without its nulls; an empty one if there is none."""
    value = c.get(key)
    if not isinstance(value, Mapping | None):
        raise ValueError(
            f"[config] {key} must be an object; it is {reprlib.repr(value)}"
        )
    return {k: v for k, v in (value or {}).items() if v is not None}
