"""Gates, outliers and thresholding rules in a trained model.

Is a gate a toll booth, strictly between 0 and 1? How far do activations reach, and for
which tokens? How much worse does a model predict for each share of weights that
thresholding leaves unread? What is measured is a statement on the weights that were
loaded: those of the default model were rounded to 4 bits (GGUF's Q4_1, in groups of 32)
before anyone here saw them.

Thresholds come from one half of a text, perplexities from the other; every token is
thresholded, a prompt's too. Outliers, in particular of first tokens: Sun et al. 2024,
arXiv:2402.17762; of gated units: Yang et al. 2024, arXiv:2405.14428.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .. import hub
from ..evaluation.measures import Mean, Perplexity
from ..evaluation.scores import score
from ..evaluation.subject import Subject
from ..evaluation.windows import SAMPLE, read_text, split
from ..models.llama import Model
from ..tokenizer import Tokenizer
from .activation_report import draw, summary
from .experiment import Cell, Experiment
from .hooks import Pass, Site, hooked
from .thresholding import RULES, Read, thresholded, thresholds

#: Of gate and phi, from the smallest to the largest.
QUANTILES = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)
#: What counts as small.
_SMALL = 0.01


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        model: any that `load` takes; None for the default model.
        text: a file; None for the sample of ``mlx-glu perplexity``.
        tokens: that each half of the text has at most.
        length: of a window, at most; windows share a half evenly.
        shares: of the entries at each place that a rule leaves out.
        rules: keys of ``RULES``.
    """

    model: Path | None = None
    text: Path | None = None
    tokens: int = 2048
    length: int = 512
    shares: tuple[float, ...] = (0.25, 0.4, 0.5, 0.65)
    rules: tuple[str, ...] = tuple(RULES)


def prepare(settings: Settings) -> Settings:
    """Find model and text.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the Hub does not have the model.
    """
    text = SAMPLE if settings.text is None else settings.text
    if settings.model is not None:
        model = hub.resolve(str(settings.model))
    else:
        # Its folder may have been packed anew from the Hub's weights.
        gguf = hub.cache_folder() / hub.GGUF
        model = gguf if gguf.exists() else hub.find_default()
    return replace(settings, model=model, text=text)


def cells(settings: Settings) -> list[Cell]:
    """All layers at once, the model as it is, and each rule at each share."""
    perplexity = {"part": "perplexity"}
    return [
        {"part": "layers"},
        perplexity | {"rule": "none", "share": 0.0},
        *(
            perplexity | {"rule": rule, "share": share}
            for rule in settings.rules
            for share in settings.shares
        ),
    ]


def measure(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Statistics by layer, or what a rule costs and leaves unread."""
    if cell["part"] == "layers":
        return _layers(settings)
    model, dense, skipped = _data(settings).model, _dense(settings), Read(0, 0)
    losses = dense
    if cell["rule"] != "none":
        levels = {
            path: float(found[settings.shares.index(cell["share"])])
            for path, found in _levels(settings, cell["rule"]).items()
        }
        with thresholded(model, RULES[cell["rule"]], levels) as filters:
            losses = _losses(settings)
        skipped = Read.skipped(filters)
    found, change = Perplexity.of(losses, 1.0), Mean.of(losses - dense)
    read = Read.of(model)
    return {
        "perplexity": found.value,
        "perplexity_error": found.error,
        "loss": found.loss,
        "tokens": found.tokens,
        "loss_change": change.value,
        "loss_change_error": change.error,
        "ffn_skipped": skipped.ffn / read.ffn / found.tokens,
        "model_skipped": skipped.model / read.model / found.tokens,
    }


class _Data(NamedTuple):
    model: Model
    tokenizer: Tokenizer
    bits_per_weight: float
    calibration: list[list[int]]
    evaluation: list[list[int]]


@lru_cache(maxsize=1)
def _data(settings: Settings) -> _Data:
    assert settings.model is not None
    assert settings.text is not None
    subject = Subject.open(settings.model)
    ids = subject.tokenizer.encode(read_text(settings.text))
    half = min(len(ids) // 2, settings.tokens)
    count = max(1, -(-half // settings.length))
    length = half // count
    halves = (split(ids[start : start + count * length], length) for start in (0, half))
    return _Data(subject.load(), subject.tokenizer, subject.bits_per_weight, *halves)


def _losses(settings: Settings) -> np.ndarray:
    data = _data(settings)
    return score([data.model], data.evaluation).losses[0]


@lru_cache(maxsize=1)
def _dense(settings: Settings) -> np.ndarray:
    return _losses(settings)


@lru_cache(maxsize=1)
def _levels(settings: Settings, rule: str) -> dict[str, np.ndarray]:
    data = _data(settings)
    ids = mx.array(data.calibration)
    return thresholds(data.model, RULES[rule], ids, settings.shares)


def _layers(settings: Settings) -> dict[str, Any]:
    """Of all tokens of both halves; results are lists, a value for each layer."""
    data = _data(settings)
    ids = np.array(data.calibration + data.evaluation)
    found: list[dict[str, Any]] = []

    def make(site: Site) -> Pass:
        def see(x: mx.array) -> mx.array:
            arrays = site.unit.gate, site.unit.phi, x
            gate, phi, h = (np.array(a.astype(mx.float32)) for a in arrays)
            seen = describe(gate, phi, h)
            token = int(ids[seen["window"], seen["position"]])
            found.append(seen | {"token": data.tokenizer.decode([token])})
            return x

        return see

    with hooked(data.model, make):
        mx.eval(data.model(mx.array(ids), last_only=True))
    return {
        "bits_per_weight": data.bits_per_weight,
        "windows": list(ids.shape),
        "quantiles": QUANTILES,
    } | {name: [layer[name] for layer in found] for name in found[0]}


def describe(gate: np.ndarray, phi: np.ndarray, h: np.ndarray) -> dict[str, Any]:
    """Statistics of one layer's feed-forward.

    Args:
        gate: [B, L, N] pre-activation.
        phi: [B, L, N] activated.
        h: [B, L, N] input of the down projection.

    Returns:
        Shares of entries; ranges; where ``abs(h)`` is largest, and how large it is
        without the first token of each window.
    """
    size = np.abs(h)
    window, position, channel = np.unravel_index(size.argmax(), h.shape)
    energy = np.square(h, dtype=np.float64).sum(axis=(0, 2))
    return {
        "gate": np.quantile(gate, QUANTILES).tolist(),
        "phi": np.quantile(phi, QUANTILES).tolist(),
        "gate_below_0": float((gate < 0).mean()),
        "gate_above_1": float((gate > 1).mean()),
        "phi_below_0": float((phi < 0).mean()),
        "phi_above_1": float((phi > 1).mean()),
        "phi_inside": float(((phi > 0) & (phi < 1)).mean()),
        "phi_small": float((np.abs(phi) < _SMALL).mean()),
        "h_small": float((size < _SMALL).mean()),
        "h_max": float(size.max()),
        "h_max_later": float(size[:, 1:].max()),
        "h_rms": float(np.sqrt(energy.sum() / h.size)),
        "first_energy": float(energy[0] / energy.sum()),
        "window": int(window),
        "position": int(position),
        "channel": int(channel),
    }


EXPERIMENT = Experiment(
    quick=Settings(tokens=64, length=32, shares=(0.5,)),
    full=Settings(),
    cells=cells,
    measure=measure,
    summary=summary,
    draw=draw,
    size=(7.2, 6.2),
    prepare=prepare,
)
