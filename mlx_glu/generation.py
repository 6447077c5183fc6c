"""Text generation: prefill in chunks, then a token at a time."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .models.llama import Cache, Model
from .prefill import Progress, is_stale, read_prompt, unread
from .sample import Sampler, Sampling
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class GenerationResponse:
    """One step of `stream_generate`; the fields are mlx-lm's.

    Attributes:
        text: what is new since the last response; may be empty.
        token: the token of this step.
        logprobs: [vocab_size], not computed unless it is used.
        from_draft: always False: there is no draft model.
        prompt_tokens: length of the prompt.
        prompt_tps: prompt tokens per second.
        generation_tokens: tokens generated so far.
        generation_tps: tokens per second after the first.
        peak_memory: MLX's peak memory so far, in GB.
        finish_reason: ``stop``, ``length``, or None while it goes on.
    """

    text: str
    token: int
    logprobs: mx.array
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None = None


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str | Iterable[int],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
) -> str:
    """Generate text after ``prompt``; see `stream_generate`."""
    steps = stream_generate(
        model, tokenizer, prompt, max_tokens=max_tokens, sampling=sampling, stop=stop
    )
    return "".join(step.text for step in steps)


def stream_generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str | Iterable[int],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    prompt_cache: Cache | None = None,
    cached: Sequence[int] = (),
    prefill_step_size: int | None = None,
    prompt_progress_callback: Progress | None = None,
) -> Iterator[GenerationResponse]:
    """Generate text after ``prompt``, a response a token.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        prompt: text, which is continued: its next word keeps the space before it.
            Or token ids, such as ``tokenizer.apply_chat_template(messages)``; what
            follows them is a text of its own, which starts without that space.
        max_tokens: stop after this many.
        sampling: None takes the likeliest token each time.
        stop: a string or some that end the text; they are not part of it. The one
            that is complete first counts.
        prompt_cache: from ``model.make_cache()``; holds what came before and is
            updated in place. The last token is not in it, unless it ended the text
            before ``max_tokens``; ``prompt_cache[0].offset`` counts those that are.
        cached: the ids that it holds, for the repetition penalty, and for a model
            with longrope, which reads them again where its original context ends.
        prefill_step_size: prompt tokens per chunk; None is 2048, or 256 on a CPU,
            which takes seconds for more.
        prompt_progress_callback: called with (tokens done, tokens in all).

    Yields:
        A response a token; the last one has a ``finish_reason``. Text appears
        once no stop string can begin in it.

    Raises:
        ValueError: an empty prompt, a token id the model does not have, or a size
            below 1.
    """
    if isinstance(prompt, str):
        ids = continued = tokenizer.encode(prompt)
    else:
        ids, continued = [int(token) for token in prompt], []
    detokenizer = tokenizer.detokenizer(continued, skip_special_tokens=True)
    waiting = StopStrings([stop] if isinstance(stop, str) else stop)
    steps = generate_step(
        ids,
        model,
        max_tokens=max_tokens,
        sampler=Sampler(sampling or Sampling()),
        prompt_cache=prompt_cache,
        cached=cached,
        prefill_step_size=prefill_step_size,
        prompt_progress_callback=prompt_progress_callback,
    )
    start, prompt_s, reason = time.perf_counter(), 0.0, None
    for count, (token, logprobs) in enumerate(steps, start=1):
        if count == 1:
            prompt_s = time.perf_counter() - start
        if token in tokenizer.eos_token_ids:
            reason = "stop"
        else:
            detokenizer.add_token(token)
            reason = "length" if count == max_tokens else None
        if reason:
            detokenizer.finalize()
        text = waiting.release(detokenizer.last_segment, last=reason is not None)
        if waiting.hit:
            reason = "stop"
        after_first = time.perf_counter() - start - prompt_s
        yield GenerationResponse(
            text=text,
            token=token,
            logprobs=logprobs,
            from_draft=False,
            prompt_tokens=len(ids),
            prompt_tps=len(ids) / prompt_s,
            generation_tokens=count,
            generation_tps=(count - 1) / after_first if count > 1 else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=reason,
        )
        if reason:
            return


def generate_step(
    prompt: Sequence[int],
    model: Model,
    *,
    max_tokens: int,
    sampler: Sampler,
    prompt_cache: Cache | None = None,
    cached: Sequence[int] = (),
    prefill_step_size: int | None = None,
    prompt_progress_callback: Progress | None = None,
) -> Iterator[tuple[int, mx.array]]:
    """Yield ``max_tokens`` tokens and their log-probabilities [vocab_size].

    While a token is handed out, the next is being computed. See `stream_generate`.
    """
    _check(prompt, model.config.vocab_size, sampler.rules)
    if prefill_step_size is None:
        prefill_step_size = 2048 if mx.default_device() == mx.gpu else 256
    for name, size in (
        ("max_tokens", max_tokens),
        ("prefill_step_size", prefill_step_size),
    ):
        if size < 1:
            raise ValueError(f"[generate] {name} must be at least 1, got {size}")
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    report = prompt_progress_callback or (lambda done, total: None)
    known = [*cached, *prompt]
    ids = unread(model, cache, known, len(prompt))
    report(0, len(ids))
    last = read_prompt(model, cache, ids, prefill_step_size, report)
    history = mx.array(known) if sampler.needs_history else None

    def step(inputs: mx.array) -> tuple[mx.array, mx.array]:
        nonlocal history
        logits = model(inputs[None], cache, last_only=True)[0, -1]
        token, logprobs = sampler(logits, history)
        if history is not None:
            history = mx.concatenate([history, token[None].astype(history.dtype)])
        mx.async_eval(token)
        return token, logprobs

    token, logprobs = step(mx.array(last))
    for count in range(1, max_tokens + 1):
        if count == 1:
            mx.eval(token)
            report(len(ids), len(ids))
        following = None
        if count < max_tokens and is_stale(model, cache, 1):
            ids = unread(model, cache, [*known, int(token.item())], 1)  # type: ignore[arg-type]
            last = read_prompt(model, cache, ids, prefill_step_size)
            following = step(mx.array(last))
        elif count < max_tokens:
            following = step(token[None])
        known.append(int(token.item()))  # type: ignore[arg-type]
        yield known[-1], logprobs
        if following is not None:
            token, logprobs = following


class StopStrings:
    """Hold text back while a stop string may be beginning in it.

    Attributes:
        hit: a stop string was found; what follows it is dropped.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [s for s in stop if s]
        self._held = ""
        self.hit = False

    def release(self, text: str, *, last: bool) -> str:
        """Add ``text``; return what can be shown. ``last`` ends the waiting."""
        self._held += text
        found = [(self._held.find(s), len(s)) for s in self._stop]
        # The first to be complete: how the text was cut must not matter.
        ends = [(start + length, start) for start, length in found if start >= 0]
        if ends:
            self.hit = True
            shown, self._held = self._held[: min(ends)[1]], ""
            return shown
        keep = 0 if last else self._undecided()
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def _undecided(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0


def _check(ids: Sequence[int], vocab_size: int, rules: Sampling) -> None:
    if not ids:
        raise ValueError("[generate] the prompt is empty; give at least one token")
    for name, tokens in (("the prompt", ids), ("logit_bias", rules.logit_bias)):
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"[generate] {name} has token {token}, but the model knows 0 to "
                    f"{vocab_size - 1}; is the tokenizer the model's own?"
                )
