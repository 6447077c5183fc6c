"""How config.json states a rotation: transformers 4's keys and transformers 5's."""

import reprlib
from typing import Any

from .families import FULL, SLIDING
from .fields import LEAST, MOST, Config, flag, number
from .fields import block as object_at
from .rope import RopeParameters, inverse_frequencies

#: Those that a rotation may have; ``truncate`` is its one flag.
_ROPE_NUMBERS = {
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
}

_ROPE_FIELDS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")

#: Of longrope: a divisor for each frequency, within the original context and beyond.
_ROPE_LISTS = ("short_factor", "long_factor")

_OLD_NAMES = {"su": "longrope"}

#: Where the length before the extension may stand beside the block, and wins.
_EXTENDED = ("llama3", "longrope", "yarn")
_ORIGINAL = "original_max_position_embeddings"


def read_rope(config: Config, c: Config, kind: str, head_dim: int) -> RopeParameters:
    """The rotary settings of the layers of one ``kind``.

    Args:
        config: ``config.json`` as it is.
        c: the same with the family's defaults.
        kind: ``full_attention`` or ``sliding_attention``.
        head_dim: size of a head.

    Raises:
        ValueError: unknown, contradictory or impossible settings.
    """
    new, old = object_at(config, "rope_parameters"), object_at(config, "rope_scaling")
    block = new or old
    if kind == SLIDING and "rope_local_base_freq" in c:
        # Gemma 3: the settings of a flat block are those of the full layers.
        block, theta = object_at(block, SLIDING), c["rope_local_base_freq"]
    else:
        block, theta = object_at(block, kind) or block, c["rope_theta"]
    said = {"partial_rotary_factor": 1.0, **c, "rope_theta": theta, **block}
    share = number(said, "partial_rotary_factor", most=1.0)
    differ = [k for k, v in old.items() if k != "type" and block.get(k) != v]
    if kind == FULL and new and differ:
        raise ValueError(
            f"[config] rope_parameters and rope_scaling differ in {differ[0]!r}"
        )
    silent = None if "factor" in block else "default"
    rope_type = block.get("rope_type", block.get("type", silent))
    if not isinstance(rope_type, str):
        raise ValueError(
            f"[config] rope_scaling {reprlib.repr(block)} names no rope_type"
        )
    rope_type = _OLD_NAMES.get(rope_type, rope_type)
    if _ORIGINAL in c and rope_type in _EXTENDED:
        block = {**block, _ORIGINAL: c[_ORIGINAL]}
    for key in _ROPE_NUMBERS & block.keys():
        number(block, key)
    flag(block, "truncate")
    if rope_type == "longrope":
        pairs = int(head_dim * share) // 2
        for key in _ROPE_LISTS:
            _check_list(block, key, pairs)
    rope = RopeParameters(
        theta=number(said, "rope_theta"),
        max_position_embeddings=c["max_position_embeddings"],
        rope_type=rope_type,
        scaling={k: v for k, v in block.items() if k not in _ROPE_FIELDS},
        partial_rotary_factor=share,
    )
    _check_rotation(rope, head_dim)
    return rope


def old_block(rope: RopeParameters, *, beside: bool) -> dict[str, Any] | None:
    """``rope_scaling`` as transformers 4 and mlx-lm read it.

    ``beside``: the original length stands beside it. Phi-3's has exactly three keys.
    """
    block = rope.as_config()
    block.pop("partial_rotary_factor", None)
    if beside and rope.rope_type == "longrope":
        block["type"] = block.pop("rope_type")
        block.pop(_ORIGINAL, None)
    return None if rope.rope_type == "default" else block


def _check_list(block: Config, key: str, length: int) -> None:
    values = block.get(key)
    if not isinstance(values, list) or len(values) != length:
        raise ValueError(
            f"[config] {key} of longrope must be a list of {length} numbers, one a "
            f"rotated pair; it is {reprlib.repr(values)}"
        )
    for value in values:
        number({key: value}, key)


def _check_rotation(rope: RopeParameters, head_dim: int) -> None:
    dims = rope.dims(head_dim)
    try:
        frequencies, scale = inverse_frequencies(rope, dims)
        frequencies += inverse_frequencies(rope, dims, long=True)[0]
        # Pairs of frequency 0 stay as they are.
        possible = all(LEAST <= f <= MOST for f in [*filter(None, frequencies), scale])
    except (ArithmeticError, TypeError, ValueError):
        possible = False
    # Pairs are rotated, and the dynamic form divides by dims - 2.
    if not possible or dims % 2 or not 4 <= dims <= head_dim:
        raise ValueError(
            f"[config] {rope.rope_type} rotation is impossible for head_dim {head_dim} "
            f"with theta {rope.theta} and {reprlib.repr(rope.scaling)}"
        )
