"""Log-probabilities of models on the same tokens, a slice at a time.

Nothing here holds the logits of a whole window: a vocabulary may have 256k tokens.
From the logits on everything is float64, as MLX's float32 logsumexp over a vocabulary
is low by 1e-4 nats on a CPU.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..models.llama import Model
from .windows import batches

#: Logits that a model computes at once, and that are float64 at once.
AT_ONCE, DOUBLE_AT_ONCE = 1 << 25, 1 << 22

#: Called with the number of predictions that were made.
Progress = Callable[[int], object]


@dataclass
class Scores:
    """What was found of every predicted token, in float64.

    Attributes:
        losses: of each model, nats [T].
        kl: KL(A || B) of the two distributions, nats [T]; of two models.
        same_top: did both find the same token likeliest? [T]; of two models.
        seconds: that each model took.
    """

    losses: list[np.ndarray]
    kl: np.ndarray
    same_top: np.ndarray
    seconds: list[float]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [..., V] in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def score(
    models: Sequence[Model],
    windows: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Scores:
    """Let one model or two predict every token of each window but the first.

    Args:
        models: one or two, of one vocabulary.
        windows: token ids.
        batch_size: windows at once.
        progress: is told how many predictions were made since.

    Raises:
        ValueError: logits that are no numbers.
    """
    seconds = [0.0] * len(models)
    parts: list[tuple[np.ndarray, ...]] = []
    for batch in batches(windows, batch_size):
        for start, logits in _slices(models, batch, seconds):
            stop = start + logits[0].shape[1]
            targets = batch[:, start + 1 : stop + 1].reshape(-1)
            flat = [x.reshape(targets.size, -1) for x in logits]
            rows = max(1, DOUBLE_AT_ONCE // flat[0].shape[1])
            for i in range(0, targets.size, rows):
                here = slice(i, i + rows)
                parts.append(_score_rows(targets[here], [x[here] for x in flat]))
            if progress is not None:
                progress(targets.size)
    *losses, kl, same_top = map(np.concatenate, zip(*parts, strict=True))
    return Scores(losses, kl, same_top, seconds)


def _score_rows(
    targets: np.ndarray, logits: list[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Losses of each model, KL and agreement of some tokens."""
    logs = [log_softmax(x) for x in logits]
    at = np.arange(targets.size)
    losses = [-x[at, targets] for x in logs]
    first, last = logs[0], logs[-1]
    kl = (np.exp(first) * (first - last)).sum(axis=-1)
    if not all(np.isfinite(found).all() for found in (*losses, kl)):
        raise ValueError(
            "[perplexity] the model's logits are no finite numbers; look for broken "
            "weights with mlx-glu convert --check"
        )
    same = first.argmax(axis=-1) == last.argmax(axis=-1)
    return (*losses, kl, same)


def _slices(
    models: Sequence[Model], batch: np.ndarray, seconds: list[float]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Where a slice begins, and the logits [B, l, V] of each model there."""
    caches = [model.make_cache() for model in models]
    ids = mx.array(batch)
    inputs = batch.shape[1] - 1  # the last token predicts nothing
    for layer in (layer for cache in caches for layer in cache):
        layer.expected = inputs  # as if a window were read in one go
    step = max(1, AT_ONCE // (batch.shape[0] * models[0].config.vocab_size))
    for start in range(0, inputs, step):
        found = []
        for i, (model, cache) in enumerate(zip(models, caches, strict=True)):
            begin = time.perf_counter()
            logits = model(ids[:, start : min(start + step, inputs)], cache)
            found.append(np.array(logits.astype(mx.float32)))
            seconds[i] += time.perf_counter() - begin
        yield start, found
