"""Rotary position embeddings, as transformers defines each ``rope_type``.

Source: Su et al. 2021, arXiv:2104.09864; scaling forms as named below.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn


@dataclass(frozen=True)
class RopeParameters:
    """One layer type's rotary settings, the same for both config generations.

    Attributes:
        theta: the base of the geometric series of wavelengths.
        rope_type: a key of ``ROPE_TYPES``.
        scaling: the keys that ``rope_type`` reads (``factor``, ...).
        max_position_embeddings: the model's context length in tokens.
        partial_rotary_factor: share of each head that is rotated.
    """

    theta: float
    max_position_embeddings: int
    rope_type: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    partial_rotary_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(
                f"[rope] rope_type {self.rope_type[:100]!r} is not supported; "
                f"supported: {', '.join(ROPE_TYPES)}"
            )
        for key in _REQUIRED[self.rope_type]:
            if not isinstance(self.scaling.get(key), (int, float)):
                raise ValueError(
                    f"[rope] rope_type {self.rope_type!r} needs a number {key!r}, "
                    f"got {self.scaling.get(key)!r}"
                )

    def as_config(self) -> dict[str, Any]:
        """The block of ``config.json`` without its ``rope_theta``."""
        block = {**self.scaling, "rope_type": self.rope_type}
        if self.partial_rotary_factor != 1.0:
            block["partial_rotary_factor"] = self.partial_rotary_factor
        return block

    def dims(self, head_dim: int) -> int:
        """How much of a head is rotated; ``proportional`` leaves pairs of all of it."""
        if self.rope_type == "proportional":
            return head_dim
        return int(head_dim * self.partial_rotary_factor)

    @property
    def original(self) -> float:
        """The context length that the model had before it was extended."""
        old: float | None = self.scaling.get("original_max_position_embeddings")
        return old or self.max_position_embeddings

    @property
    def switch(self) -> float:
        """The number of tokens beyond which all of them are rotated differently."""
        return self.original if self.rope_type == "longrope" else math.inf


class Rope(nn.Module):
    """Rotate queries or keys.

    Args:
        head_dim: D, the size of one head.
        parameters: the layer's settings.
        traditional: a pair are neighbours, instead of one number of each half.
    """

    def __init__(
        self, head_dim: int, parameters: RopeParameters, *, traditional: bool = False
    ) -> None:
        super().__init__()
        self.traditional = traditional
        self.dims = parameters.dims(head_dim)
        self.parameters_ = parameters
        self._scale = 1.0
        self._periods: mx.array | None = None
        rope_type = parameters.rope_type
        if rope_type not in ("default", "dynamic"):
            inverse, self._scale = inverse_frequencies(parameters, self.dims)
            self._periods = mx.array([1 / f if f else math.inf for f in inverse])
        if rope_type == "longrope":
            inverse, _ = inverse_frequencies(parameters, self.dims, long=True)
            self._long = mx.array([1.0 / f for f in inverse], mx.float32)

    def __call__(self, x: mx.array, offset: int = 0, expected: int = 0) -> mx.array:
        """Rotate ``x`` [B, H, L, D] whose first position is ``offset``.

        ``expected`` is the length of the whole sequence, if more is known to come.
        """
        length = max(offset + x.shape[-2], expected)
        theta, periods = None, self._periods
        if periods is None:
            theta = self._theta(length)
        elif length > self.parameters_.switch:
            periods = self._long
        if self._scale != 1.0:
            x = _scale_first(x, self.dims, self._scale)
        return mx.fast.rope(
            x,
            self.dims,
            traditional=self.traditional,
            base=theta,
            scale=1.0,
            offset=offset,
            freqs=periods,
        )

    def _theta(self, length: int) -> float:
        """The base for a sequence of ``length`` tokens (dynamic NTK grows it)."""
        p = self.parameters_
        if p.rope_type != "dynamic" or length <= p.max_position_embeddings:
            return p.theta
        factor, longest = p.scaling["factor"], p.max_position_embeddings
        growth = factor * length / longest - (factor - 1)
        return float(p.theta * growth ** (self.dims / (self.dims - 2)))


class NoRope(nn.Module):
    """What stands for `Rope` in a layer without positions."""

    def __call__(self, x: mx.array, offset: int = 0, expected: int = 0) -> mx.array:
        """``x`` as it is."""
        return x


def _scale_first(x: mx.array, dims: int, scale: float) -> mx.array:
    """Multiply the rotated part of ``x`` [..., D]; the rest passes unchanged."""
    if dims == x.shape[-1]:
        return x * scale
    return mx.concatenate([x[..., :dims] * scale, x[..., dims:]], axis=-1)


Frequencies = tuple[list[float], float]


def inverse_frequencies(
    p: RopeParameters, dims: int, *, long: bool = False
) -> Frequencies:
    """Radians per position of each rotated pair [dims / 2], and cos/sin's factor.

    ``long``: those beyond ``p.switch`` tokens.
    """
    if long and p.rope_type == "longrope":
        return _longrope(p, dims, "long_factor")
    return ROPE_TYPES[p.rope_type](p, dims)


def _default(p: RopeParameters, dims: int) -> Frequencies:
    return [p.theta ** (-i / dims) for i in range(0, dims, 2)], 1.0


def _linear(p: RopeParameters, dims: int) -> Frequencies:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595)."""
    return [f / p.scaling["factor"] for f in _default(p, dims)[0]], 1.0


def _llama3(p: RopeParameters, dims: int) -> Frequencies:
    """Llama 3.1: long wavelengths divided by the factor, a ramp in between."""
    s = p.scaling
    low, high = s["low_freq_factor"], s["high_freq_factor"]
    old = p.original

    def scaled(f: float) -> float:
        wavelength = 2 * math.pi / f
        if wavelength < old / high:
            return f
        if wavelength > old / low:
            return float(f / s["factor"])
        smooth = (old / wavelength - low) / (high - low)
        return float((1 - smooth) * f / s["factor"] + smooth * f)

    return [scaled(f) for f in _default(p, dims)[0]], 1.0


def _yarn(p: RopeParameters, dims: int) -> Frequencies:
    """YaRN (Peng et al. 2023, arXiv:2309.00071)."""
    s, old, factor = p.scaling, p.original, p.scaling["factor"]

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    def dimension(rotations: float) -> float:
        ratio = math.log(old / (rotations * 2 * math.pi))
        return dims * ratio / (2 * math.log(p.theta))

    low, high = dimension(s.get("beta_fast") or 32), dimension(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    span = high - low or 0.001
    frequencies = []
    for i, f in enumerate(_default(p, dims)[0]):
        ramp = min(max((i - low) / span, 0.0), 1.0)
        frequencies.append(f / factor * ramp + f * (1 - ramp))
    scale = s.get("attention_factor")
    if scale is None:
        weight, all_dims = s.get("mscale"), s.get("mscale_all_dim")
        scale = mscale(1.0)
        if weight and all_dims:
            scale = mscale(weight) / mscale(all_dims)
    return frequencies, float(scale)


def _longrope(
    p: RopeParameters, dims: int, divisors: str = "short_factor"
) -> Frequencies:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a divisor for each frequency."""
    s, old = p.scaling, p.original
    each = zip(_default(p, dims)[0], s[divisors], strict=True)
    scale, factor = s.get("attention_factor"), s.get("factor")
    if scale is None:
        factor = factor or p.max_position_embeddings / old
        scale = math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0
    return [f / divisor for f, divisor in each], float(scale)


def _proportional(p: RopeParameters, dims: int) -> Frequencies:
    """Gemma 4: the series of a whole head, of which only the first pairs turn."""
    turned = int(p.partial_rotary_factor * dims // 2)
    every = _default(p, dims)[0]
    some = [f / p.scaling.get("factor", 1.0) for f in every[:turned]]
    return some + [0.0] * (len(every) - turned), 1.0


#: rope_type -> inverse frequencies [dims / 2] and the factor on cos and sin.
#: ``dynamic`` (NTK-aware) depends on the length: ``Rope`` computes it per call.
#: ``longrope`` has other frequencies beyond the original context.
ROPE_TYPES: dict[str, Callable[[RopeParameters, int], Frequencies]] = {
    "default": _default,
    "dynamic": _default,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
    "yarn": _yarn,
}

_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "dynamic": ("factor",),
    "linear": ("factor",),
    "longrope": (),
    "proportional": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
