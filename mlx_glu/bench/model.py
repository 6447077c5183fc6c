"""Tokens per second of a whole model with and without fusion, prompt and decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import dispatch, paired
from ..proof.tolerance import EPS, f64
from ..quantization import dtype_name
from .layer import NEEDS_MAC, what_ran
from .machine import runs_kernels
from .rows import WRONG, Row, compared

ARMS = ("stock", "fused")


@dataclass(frozen=True)
class Engine:
    """A loaded model and how its package calls it.

    Attributes:
        name: of the folder.
        forward: token ids [1, L] and a cache to logits [1, 1 or L, vocab_size].
        make_cache: an empty one.
        using: inside it, the model runs as an arm says.
        layers: how many.
        vocab_size: how many tokens there are.
        notes: what a user should hear of.
    """

    name: str
    forward: Callable[[mx.array, Any], mx.array]
    make_cache: Callable[[], Any]
    using: Callable[[str], AbstractContextManager[None]]
    layers: int
    vocab_size: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Effort:
    """What is timed, and how long.

    Attributes:
        prompt_tokens: of the random prompt.
        generation_tokens: after it, greedy.
        prefill_step_size: prompt tokens at once.
        trials: blocks of ABBA; each has two runs of each arm.
        max_variation: of an arm; above it, it is too noisy.
    """

    prompt_tokens: int
    generation_tokens: int
    prefill_step_size: int
    trials: int
    max_variation: float


def load(path: str, engine: str) -> Engine:
    """Load a model with this package or with mlx-lm.

    Raises:
        ValueError: it cannot be loaded, or mlx-lm is not installed.
    """
    return _load_mlx_lm(path) if engine == "mlx-lm" else _load_own(path)


def _load_own(path: str) -> Engine:
    from ..fusion import fuse
    from ..loading import load_model

    model = fuse(load_model(path))

    def using(arm: str) -> AbstractContextManager[None]:
        return dispatch.use_impl("stock") if arm == "stock" else nullcontext()

    return Engine(
        Path(path).name,
        partial(model, last_only=True),
        model.make_cache,
        using,
        model.config.num_hidden_layers,
        model.config.vocab_size,
        (f"weights {model.representation}", *model.notes),
    )


def _load_mlx_lm(path: str) -> Engine:
    from .. import mlx_lm_engine
    from ..fusion import fuse, unfuse

    loaded = mlx_lm_engine.load(path)
    model: Any = loaded.model

    def forward(ids: mx.array, cache: Any) -> mx.array:
        logits: mx.array = model(ids, cache=cache)
        return logits

    @contextmanager
    def using(arm: str) -> Iterator[None]:
        if arm == "stock":
            yield
            return
        fuse(model)
        try:
            yield
        finally:
            unfuse(model)

    make_cache = partial(mlx_lm_engine.make_cache, model)
    return Engine(
        Path(path).name,
        forward,
        make_cache,
        using,
        len(model.layers),
        forward(mx.array([[0]]), make_cache()).shape[-1],
        (f"weights {loaded.representation}",),
    )


class _Session:
    """Runs of one model on one prompt."""

    def __init__(self, engine: Engine, effort: Effort) -> None:
        self._engine, self._effort = engine, effort
        size = (effort.prompt_tokens,)
        self._prompt = mx.random.randint(
            0, engine.vocab_size, size, key=mx.random.key(0)
        )
        self._cache: Any = None
        self._token = mx.array([0])
        self.logits = mx.array(0.0)

    @property
    def prompt_tokens(self) -> int:
        """How many."""
        return self._effort.prompt_tokens

    def prompt(self) -> None:
        """Read the prompt into a new cache, as generation does."""
        forward, step = self._engine.forward, self._effort.prefill_step_size
        left, self._cache = self._prompt, self._engine.make_cache()
        while left.size > step:
            forward(left[None, :step], self._cache)
            mx.eval([c.state for c in self._cache])
            left = left[step:]
        self.logits = forward(left[None], self._cache)[0, -1]
        self._token = mx.argmax(self.logits, keepdims=True)
        mx.eval(self._token)

    def one_token(self) -> None:
        """Read a token after the prompt, in each arm the same."""
        self.logits = self._engine.forward(mx.array([[0]]), self._cache)[0, -1]

    def decode(self) -> None:
        """Generate; while a token is waited for, the next is being computed."""
        token = self._token
        for _ in range(self._effort.generation_tokens):
            self.logits = self._engine.forward(token[None], self._cache)[0, -1]
            following = mx.argmax(self.logits, keepdims=True)
            mx.async_eval(following)
            mx.eval(token)
            token = following
        mx.eval(token)


def measure(
    engine: Engine, effort: Effort, *, timer: paired.Timer = paired.wall_clock
) -> list[Row]:
    """Time prompt and decode of each arm, in turns.

    Args:
        engine: from :func:`load`.
        effort: how many tokens, and how often.
        timer: of one run; its arms are "stock prompt", "stock decode" and so on.
    """
    session = _Session(engine, effort)
    arms = ARMS if runs_kernels() else ARMS[:1]
    rows, fault = _look_at(engine, session, arms)
    if fault:
        return [replace(row, verdict=WRONG, why=fault) for row in rows]
    later: dict[str, list[float]] = {arm: [] for arm in arms}

    def run(arm: str) -> None:
        with engine.using(arm):
            session.prompt()
            session.decode()

    def clock(arm: str, _: paired.Run) -> float:
        with engine.using(arm):
            seconds = timer(f"{arm} prompt", session.prompt)
            later[arm].append(timer(f"{arm} decode", session.decode))
        return seconds

    runs: dict[str, paired.Run] = {arm: partial(run, arm) for arm in arms}
    prompt = paired.interleave(runs, effort.trials, timer=clock)
    # An arm's two runs of a block are two after each other in its list.
    decode = {
        arm: [(a + b) / 2 for a, b in zip(own[::2], own[1::2], strict=True)]
        for arm, own in later.items()
    }
    counts = {"prompt": effort.prompt_tokens, "decode": effort.generation_tokens}
    timed = {"prompt": prompt, "decode": decode}
    filled = []
    for row in rows:
        tokens = counts[row.op]
        row = compared(row, timed[row.op], tokens, effort.max_variation)
        assert row.us_p50 is not None
        filled.append(replace(row, tps=1e6 / row.us_p50))
    if "fused" not in arms:
        filled += [replace(r, arm="fused", impl=None, why=NEEDS_MAC) for r in rows]
    return filled


def _look_at(
    engine: Engine, session: _Session, arms: Sequence[str]
) -> tuple[list[Row], str]:
    """A row for each phase and arm, and what is wrong with the logits."""
    logits: dict[str, list[mx.array]] = {"prompt": [], "decode": []}
    rows = []
    for arm in arms:
        with engine.using(arm):
            for phase, found in logits.items():
                with dispatch.record() as choices:
                    run = session.prompt if phase == "prompt" else session.one_token
                    run()
                    mx.eval(session.logits)
                found.append(session.logits)
                dtype = dtype_name(session.logits.dtype)
                M = session.prompt_tokens if phase == "prompt" else 1
                impl, why = what_ran(choices)
                if arm == "stock":
                    why = ""  # that is what it is for
                elif not choices:
                    why = "nothing of this model is fused"
                names = phase, arm, engine.name
                rows.append(Row(*names, dtype=dtype, M=M, impl=impl, why=why))
    faults = (
        f"{phase}: {fault}"
        for phase, (stock, *others) in logits.items()
        for other in others
        if (fault := logits_fault(other, stock, engine.layers))
    )
    return sorted(rows, key=lambda row: row.op, reverse=True), next(faults, "")


def logits_fault(fused: mx.array, stock: mx.array, layers: int) -> str:
    """What is wrong with the fused logits; "" if nothing is.

    Each layer rounds a few times, at random, so the difference to stock is to stay
    below 4 eps sqrt(layers), over root mean squares. Kernels are proven elsewhere; this
    is to notice a model that was put together wrongly.
    """
    limit = 4 * EPS[dtype_name(stock.dtype)] * math.sqrt(layers)
    a, b = f64(fused), f64(stock)
    apart = math.sqrt(float(((a - b) ** 2).mean() / (b**2).mean()))
    if apart <= limit:
        return ""
    return (
        f"fused logits are {apart:.1e} of their size away from stock's, more than "
        f"rounding explains ({limit:.1e})"
    )
