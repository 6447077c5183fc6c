"""Is the load of a mixture's experts even? Losses that make it so.

Shapes: E experts, k of them a token, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..experts import largest
from .router import Routing


def load_balancing_loss(
    router_logits: mx.array | Sequence[mx.array],
    num_experts: int,
    top_k: int,
    mask: mx.array | None = None,
) -> mx.array:
    r"""Penalty on experts that are both often chosen and likely.

    .. math:: L = E \sum_e f_e P_e

    with :math:`f_e` the share of tokens that choose e, which has no gradient, and
    :math:`P_e` its mean probability. It is k where the load is even. Switch
    Transformer adds 0.01 of it to the loss.

    Args:
        router_logits: [..., E] ``Routing.logits``, or those of each layer.
        num_experts: E.
        top_k: k.
        mask: of a layer's tokens, [...]: 1 where they count, 0 for padding; or None.

    Returns:
        Float32 scalar over the tokens of all layers; 0 where none counts.

    Raises:
        ValueError: shapes do not match.

    Source: Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6; as transformers'
    ``load_balancing_loss_func``.
    """
    logits, counted = _tokens("load_balancing_loss", router_logits, mask)
    if logits.shape[-1] != num_experts or not 1 <= top_k <= num_experts:
        raise ValueError(
            "[load_balancing_loss] expected logits of num_experts and 1 <= top_k <= "
            f"num_experts; got {logits.shape[-1]} logits a token, num_experts = "
            f"{num_experts}, top_k = {top_k}; give those of the mixture"
        )
    load = _load(largest(logits, top_k), num_experts, counted)
    probability = _mean(mx.softmax(logits, axis=-1), counted)
    return num_experts * (load * probability).sum()


def router_z_loss(
    router_logits: mx.array | Sequence[mx.array], mask: mx.array | None = None
) -> mx.array:
    r"""Penalty on large logits: the mean of :math:`(\log \sum_e \exp z_e)^2`.

    Args:
        router_logits: [..., E] ``Routing.logits``, or those of each layer.
        mask: of a layer's tokens, [...]: 1 where they count, 0 for padding; or None.

    Returns:
        Float32 scalar over the tokens of all layers; 0 where none counts.

    Raises:
        ValueError: shapes do not match.

    Source: Zoph et al. 2022, ST-MoE, arXiv:2202.08906, equation 5.
    """
    logits, counted = _tokens("router_z_loss", router_logits, mask)
    return _mean(mx.logsumexp(logits, axis=-1, keepdims=True) ** 2, counted).sum()


def expert_load(routing: Routing, mask: mx.array | None = None) -> mx.array:
    """Share of the tokens that each expert serves.

    Args:
        routing: of T tokens in any shape.
        mask: of the same shape: 1 where a token counts, 0 for padding; or None.

    Returns:
        [E] float32, k in sum; an even load is k / E for each. 0 where none counts.

    Raises:
        ValueError: shapes do not match.
    """
    logits, counted = _tokens("expert_load", routing.logits, mask)
    return _load(routing.indices, logits.shape[-1], counted)


def _load(indices: mx.array, num_experts: int, counted: mx.array) -> mx.array:
    """As :func:`expert_load`, of indices [..., k] and of which tokens count, [T]."""
    pairs = mx.repeat(counted, indices.shape[-1])
    load = mx.zeros((num_experts,)).at[indices.flatten()].add(pairs)
    return load / mx.maximum(counted.sum(), 1)


def _tokens(
    name: str, router_logits: mx.array | Sequence[mx.array], mask: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Logits [T, E] of all layers' tokens, and which of them count, [T]."""
    if isinstance(router_logits, mx.array):
        router_logits = [router_logits]
    rows = [a.reshape(-1, a.shape[-1]).astype(mx.float32) for a in router_logits]
    if mask is not None and any(len(a) != mask.size for a in rows):
        raise ValueError(
            f"[{name}] expected a mask of one number a token; got {mask.size} for "
            f"{[len(a) for a in rows]} tokens of the layers; give that of one layer"
        )
    if mask is None:
        counted = [mx.ones(a.shape[0]) for a in rows]
    else:
        counted = [mask.flatten().astype(mx.float32)] * len(rows)
    return mx.concatenate(rows), mx.concatenate(counted)


def _mean(values: mx.array, counted: mx.array) -> mx.array:
    """Mean of ``values`` [T, ...] over the tokens that count."""
    return (counted[:, None] * values).sum(0) / mx.maximum(counted.sum(), 1)
