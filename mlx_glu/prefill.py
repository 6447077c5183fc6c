"""Read a prompt into a cache, in chunks that change nothing of what comes out."""

from collections.abc import Callable

import mlx.core as mx

from .models.llama import Cache, Model

Progress = Callable[[int, int], None]


def read_prompt(
    model: Model,
    cache: Cache,
    ids: list[int],
    step_size: int,
    progress: Progress | None = None,
) -> list[int]:
    """Read ``ids`` but for the last chunk, of which the logits are wanted.

    Args:
        model: from `load`.
        cache: holds what came before; updated in place.
        ids: the tokens that follow.
        step_size: tokens per chunk.
        progress: called with (tokens done, tokens in all) after each chunk.

    Returns:
        The last chunk: up to ``step_size`` tokens, at least one.
    """
    for layer in cache:
        layer.expected = layer.offset + len(ids)
    done = 0
    while len(ids) - done > step_size:
        model.model(mx.array([ids[done : done + step_size]]), cache)
        mx.eval([layer.state for layer in cache])
        mx.clear_cache()
        done += step_size
        if progress is not None:
            progress(done, len(ids))
    return ids[done:]


def is_stale(model: Model, cache: Cache, length: int) -> bool:
    """Must ``cache`` be computed anew before ``length`` more tokens are read?

    Longrope rotates every token differently once there are more than its original
    context holds; transformers reads all of them again there (Phi-3's generation).
    """
    return any(
        0 < cache[0].offset <= rope.switch < cache[0].offset + length
        for rope in model.config.rope.values()
    )


def unread(model: Model, cache: Cache, ids: list[int], length: int) -> list[int]:
    """What is to be read of ``ids``: the last ``length``, or all, if that is stale.

    Args:
        model: from `load`.
        cache: holds the ids before the last ``length``; emptied if it is stale.
        ids: of the whole text.
        length: how many of them are new.

    Raises:
        ValueError: the cache is stale and holds more than ``ids`` tells.
    """
    if not is_stale(model, cache, length):
        return ids[-length:]
    if len(ids) != cache[0].offset + length:
        raise ValueError(
            "[generate] a longrope model reads a text anew where its original context "
            "ends; give the ids that prompt_cache holds as `cached`"
        )
    cache[:] = model.make_cache()
    return ids
