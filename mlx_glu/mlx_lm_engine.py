"""Models that mlx-lm loads and runs, with their feed-forwards fused.

The only file that imports mlx-lm, and only when it is asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .fusion import Row, explain, fuse
from .generation import GenerationResponse, Progress, StopStrings
from .loading import free_memory
from .sample import Sampler, Sampling

#: What mlx-lm's programs load models with; the second shards them over devices.
_LOADERS = ("load", "sharded_load")


class Loaded(NamedTuple):
    """A model of mlx-lm.

    Attributes:
        model: not fused yet.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        representation: how the weights are held, in words.
    """

    model: nn.Module
    tokenizer: Any
    representation: str


def load(path: str | Path) -> Loaded:
    """Load a model of any family that mlx-lm knows.

    On a CPU, 16-bit parameters, scales and affine biases become float32 if that fits.

    Args:
        path: a folder or a Hub id.

    Raises:
        ValueError: mlx-lm is not installed, or cannot load it, in mlx-lm's words.
    """
    mlx_lm = _import()
    local = Path(os.path.expanduser(path))
    if local.is_file():
        raise ValueError(
            f"[mlx-lm] expected a folder or a Hub id, but {path} is a file; leave out "
            "--engine mlx-lm, or make a folder of it with `mlx-glu convert`"
        )
    try:
        # Lazy: nothing is read in 16 bits that is to be held in 32.
        model, tokenizer = mlx_lm.load(
            str(local if local.exists() else path),
            tokenizer_config={"trust_remote_code": False},
            lazy=True,
        )
        form = _widen(model)
        mx.eval(model.parameters())
    except Exception as error:  # mlx-lm lets out whatever its parts raise
        cause = f"{type(error).__name__}: {error}"
        if not local.exists():
            cause = f"it is no folder here, and the Hub gives: {cause}"
        raise ValueError(f"[mlx-lm] {path} cannot be loaded: {cause}") from error
    return Loaded(model, tokenizer, f"mlx-lm {mlx_lm.__version__}, {form}")


def make_cache(model: nn.Module) -> Any:
    """An empty key-value cache of a model, by mlx-lm."""
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(model)


def encode_chat(
    tokenizer: Any, messages: Sequence[dict[str, Any]], config: dict[str, Any]
) -> list[int]:
    """Token ids of a conversation, up to where the answer begins.

    Args:
        tokenizer: from :func:`load`.
        messages: dictionaries with ``role`` and ``content``.
        config: arguments of the chat template.

    Raises:
        ValueError: the template does not take the messages or the arguments.
    """
    try:
        ids = tokenizer.apply_chat_template(
            list(messages), tokenize=True, **{"add_generation_prompt": True, **config}
        )
        return [int(token) for token in ids]
    except Exception as error:  # of transformers, of Jinja, or of a model's own code
        raise ValueError(
            "[mlx-lm] the chat template does not take these messages and "
            f"--chat-template-config: {type(error).__name__}: {error}"
        ) from error


def stream_generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | Sequence[int],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    prefill_step_size: int | None = None,
    prompt_progress_callback: Progress | None = None,
) -> Iterator[GenerationResponse]:
    """Generate by ``mlx_lm.stream_generate``, with the rules of our own engine.

    Args:
        model: from :func:`load`, fused or not.
        tokenizer: from :func:`load`.
        prompt: text or token ids.
        max_tokens: stop after this many.
        sampling: None takes the likeliest token each time.
        stop: strings that end the text; they are not part of it.
        prefill_step_size: prompt tokens per chunk; None leaves it to mlx-lm.
        prompt_progress_callback: called with (tokens done, tokens in all).

    Yields:
        mlx-lm's response for each token; the last one has a ``finish_reason``.

    Raises:
        ValueError: ``logit_bias`` has a token that the model does not know, or mlx-lm
            refuses the prompt.
    """
    options: dict[str, Any] = {}
    if prefill_step_size is not None:
        options["prefill_step_size"] = prefill_step_size
    process, sample = _choosers(sampling or Sampling())
    waiting = StopStrings(stop)
    for step in _import().stream_generate(
        model,
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        sampler=sample,
        logits_processors=[process],
        prompt_progress_callback=prompt_progress_callback,
        **options,
    ):
        count = step.generation_tokens
        text = waiting.release(step.text, last=step.finish_reason is not None)
        yield replace(
            step,
            text=text,
            finish_reason="stop" if waiting.hit else step.finish_reason,
            # mlx-lm counts the first token, which came before its clock started.
            generation_tps=step.generation_tps * (count - 1) / count,
        )
        if waiting.hit:
            return


def summary(model: nn.Module) -> str:
    """What runs the feed-forwards of a fused model, in one line."""
    found: dict[str, int] = {}
    for row in explain(model).rows:
        runs = _runs(row)
        found[runs] = found.get(runs, 0) + len(row.paths)
    what = "; ".join(f"{n} {runs}" for runs, n in found.items())
    return f"feed-forwards: {what or 'none found, nothing is fused'}"


@contextmanager
def fuse_on_load(program: ModuleType) -> Iterator[None]:
    """Fuse every model that a program of mlx-lm loads inside a ``with`` block.

    Draft models and models with adapters too. Each is logged at level INFO, with what
    runs fused; on a CPU 16-bit parameters become float32. This serves with mlx-lm's
    own server, and takes its flags::

        import mlx_glu, mlx_lm.server
        with mlx_glu.fuse_on_load(mlx_lm.server): mlx_lm.server.main()

    Args:
        program: a module that loads by its own name ``load``, such as
            ``mlx_lm.server`` or ``mlx_lm.chat``.

    Raises:
        ValueError: the module has no such name.
    """
    if not callable(getattr(program, "load", None)):
        raise ValueError(
            f"[fuse_on_load] expected a module with a function `load`, as mlx_lm.server"
            f" of mlx-lm 0.32 has, but {program!r} has none; call mlx_glu.fuse "
            "on the model yourself"
        )
    originals = {n: getattr(program, n) for n in _LOADERS if hasattr(program, n)}
    for name, original in originals.items():
        setattr(program, name, _fusing(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(program, name, original)


def _import() -> Any:
    try:
        import mlx_lm
    except ImportError as error:
        raise ValueError(
            f"[mlx-lm] mlx-lm cannot be imported ({error}); install it with "
            "pip install 'mlx-glu[mlx-lm]'"
        ) from error
    return mlx_lm


def _widen(model: nn.Module) -> str:
    """Make 16-bit parameters float32 where they are slow and imprecise, on a CPU."""
    arrays: Any = tree_flatten(model.parameters())
    floats = [a for _, a in arrays if mx.issubdtype(a.dtype, mx.floating)]
    half = any(a.dtype != mx.float32 for a in floats)
    if mx.default_device() == mx.gpu or not half:
        return "as stored"
    nbytes = 4 * sum(a.size for a in floats)
    if nbytes > free_memory() // 2:
        return f"as stored: float32 needs {nbytes / 1e9:.1f} GB"
    model.set_dtype(mx.float32)
    return "float32, as 16 bits are slow and imprecise on a CPU"


Processor = Callable[[mx.array, mx.array], mx.array]


def _choosers(rules: Sampling) -> tuple[Processor, Callable[[mx.array], mx.array]]:
    """Our sampler in mlx-lm's two parts: bias and penalty, then the draw."""
    before = Sampler(replace(rules, temp=0.0))
    after = Sampler(replace(rules, repetition_penalty=1.0, logit_bias={}))

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        vocab_size = logits.shape[-1]
        for token in rules.logit_bias:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"[mlx-lm] logit_bias has token {token}, but the model knows 0 to "
                    f"{vocab_size - 1}"
                )
        return before(logits[0], tokens)[1][None]

    def sample(logprobs: mx.array) -> mx.array:
        return after(logprobs[0])[0][None]

    return process, sample


def _runs(row: Row) -> str:
    if all(impl == "stock" for _, impl, _ in row.runs):
        return f"stock ({'; '.join(dict.fromkeys(why for *_, why in row.runs))})"
    return ", ".join(f"{impl} at {rows} rows" for rows, impl, _ in row.runs)


def _fusing(load: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(load)
    def load_fused(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        name = args[0] if args else next(iter(kwargs.values()), "")
        log = logging.getLogger(__name__)
        try:
            log.info("%s: %s", name, _widen(loaded[0]))
            log.info("%s: %s", name, summary(fuse(loaded[0])))
        except Exception as error:  # a server serves, if need be by stock
            log.warning("%s: not fused: %s: %s", name, type(error).__name__, error)
        return loaded

    return load_fused
