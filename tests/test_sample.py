"""Sampling rules against NumPy, one by one and together."""

import math
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from mlx_glu.sample import Sampler, Sampling

V = 97
#: The 99.99 % point of chi-square with 9 degrees of freedom.
CHI_SQUARE_9 = 33.7


def logits_of(seed, size=V):
    return np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)


def softmax64(logits):
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


def draw(rules, logits, history=None, count=1):
    sampler = Sampler(rules)
    drawn = [sampler(mx.array(logits), history)[0] for _ in range(count)]
    return np.array(mx.stack(drawn))


def logprobs_of(rules, logits, history=None):
    history = None if history is None else mx.array(history)
    return np.array(Sampler(rules)(mx.array(logits), history)[1])


def kept_by(rules, logits):
    """The tokens that can be drawn: those that have a finite logit at the draw."""
    fields = {k: getattr(rules, k) for k in ("top_p", "top_k", "min_p")}
    rules = Sampling(temp=0.7, **fields)
    with mock.patch.object(mx.random, "categorical", lambda logits, key: logits):
        return {*np.flatnonzero(np.isfinite(draw(rules, logits)[0])).tolist()}


def oracle(rules, logits):
    """The kept tokens by the definitions, in float64."""
    p = softmax64(logits)
    kept = np.ones(p.size, bool)
    if rules.top_p < 1:
        order = np.argsort(-p, kind="stable")
        count = int(np.searchsorted(np.cumsum(p[order]), rules.top_p)) + 1
        kept[order[count:]] = False
    kept &= p >= rules.min_p * p.max()
    if 0 < rules.top_k < p.size:
        survivors = np.sort(p[kept])[::-1]
        kept &= p >= survivors[min(rules.top_k, survivors.size) - 1]
    return {*np.flatnonzero(kept).tolist()}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "rules",
    [
        {"top_p": 0.001},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": V - 1},
        {"top_k": V},
        {"top_k": 10 * V},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_p": 0.8, "top_k": 5},
        {"top_p": 0.6, "top_k": 50, "min_p": 0.1},
        {"top_p": 0.95, "top_k": 12, "min_p": 0.02},
    ],
    ids=str,
)
def test_the_kept_tokens(rules, seed):
    rules, logits = Sampling(**rules), logits_of(seed)
    wanted = oracle(rules, logits)
    assert wanted
    assert kept_by(rules, logits) == wanted


def test_ties():
    """top-p keeps as few as it needs; top-k and min-p keep all that are equal."""
    logits = np.array([1, 3, 3, 3, 1, 3], np.float32)
    four = {1, 2, 3, 5}
    assert kept_by(Sampling(top_k=2), logits) == four
    assert kept_by(Sampling(min_p=1.0), logits) == four
    half = kept_by(Sampling(top_p=0.4), logits)
    assert len(half) == 2
    assert half < four
    assert len(kept_by(Sampling(top_p=1e-9), np.zeros(6, np.float32))) == 1


def test_the_order_is_mlx_lms():
    """Rules see the probabilities at temperature 1; the temperature comes last."""
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    for temp in (0.1, 10.0):
        rules = Sampling(temp=temp, top_p=0.7, seed=3)
        assert {*draw(rules, logits, count=400).tolist()} <= {0, 1}


@pytest.mark.parametrize("temp", [0.5, 1.0, 2.0])
def test_frequencies(temp):
    logits, n = logits_of(3, 10), 3000
    counts = np.bincount(
        draw(Sampling(temp=temp, seed=5), logits, count=n), minlength=10
    )
    expected = n * softmax64(logits / temp)
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_9


def test_a_seed_repeats_whatever_the_global_state():
    rules, logits = Sampling(temp=1.0, seed=7), logits_of(0)
    mx.random.seed(1)
    first = draw(rules, logits, count=30)
    mx.random.seed(2)
    mx.random.normal((3,))
    assert np.array_equal(draw(rules, logits, count=30), first)
    assert len({*first.tolist()}) > 5
    other = draw(Sampling(temp=1.0, seed=8), logits, count=30)
    assert not np.array_equal(other, first)


def test_a_seed_leaves_the_global_state_alone():
    mx.random.seed(4)
    wanted = np.array(mx.random.normal((4,)))
    mx.random.seed(4)
    draw(Sampling(temp=1.0, seed=7), logits_of(0), count=3)
    assert np.array_equal(np.array(mx.random.normal((4,))), wanted)


def test_without_a_seed_the_global_state_decides():
    rules, logits = Sampling(temp=1.0), logits_of(0)
    drawn = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        drawn.append(draw(rules, logits, count=20).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_greedy_is_the_likeliest_whatever_the_rules():
    logits = logits_of(1)
    for rules in ({}, {"top_k": 3}, {"top_p": 0.1, "min_p": 0.5, "seed": 2}):
        assert draw(Sampling(**rules), logits)[0] == logits.argmax()


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty(penalty, window):
    """Positive logits are divided, negative ones multiplied, each token once."""
    logits, history = logits_of(2), [5, 9, 5, 40, 7, 40, 40]
    assert {logits[i] > 0 for i in (5, 9, 40, 7)} == {True, False}
    rules = Sampling(repetition_penalty=penalty, repetition_context_size=window)
    seen = {*history[-(window or len(history)) :]}
    wanted = logits.astype(np.float64)
    for token in seen:
        wanted[token] *= penalty if wanted[token] < 0 else 1 / penalty
    ours = logprobs_of(rules, logits, history)
    np.testing.assert_allclose(np.exp(ours), softmax64(wanted), rtol=1e-4, atol=1e-7)


def test_no_history_is_no_penalty():
    rules = Sampling(repetition_penalty=2.0)
    assert Sampler(rules).needs_history
    assert not Sampler(Sampling(repetition_context_size=3)).needs_history
    empty = mx.array([], mx.int32)
    logits = logits_of(0)
    ours = np.array(Sampler(rules)(mx.array(logits), empty)[1])
    assert np.array_equal(ours, logprobs_of(Sampling(), logits))


def test_logit_bias():
    logits = logits_of(0)
    rules = Sampling(temp=1.0, seed=0, logit_bias={3: 100.0, 4: -math.inf})
    assert {*draw(rules, logits, count=50).tolist()} == {3}
    wanted = logits.copy()
    wanted[[3, 4, 96]] += [2.5, -math.inf, -1]
    rules = Sampling(logit_bias={3: 2.5, 4: -math.inf, 96: -1})
    ours = np.exp(logprobs_of(rules, logits))
    np.testing.assert_allclose(ours, softmax64(wanted), rtol=1e-4, atol=1e-7)
    assert ours[4] == 0


def test_penalty_bias_and_rules_together():
    logits, history = logits_of(4), [11, int(logits_of(4).argmax())]
    wanted = logits.copy()
    wanted[11] += 6
    assert (wanted[history] > 0).all()
    wanted[history] /= 4
    rules = Sampling(
        temp=1e4,
        top_p=0.9,
        top_k=6,
        repetition_penalty=4.0,
        logit_bias={11: 6.0},
        seed=1,
    )
    drawn = draw(rules, logits, mx.array(history), count=300)
    assert {*drawn.tolist()} == oracle(rules, wanted)


def test_mlx_lm_changes_logits_alike():
    make = pytest.importorskip("mlx_lm.sample_utils").make_logits_processors
    logits, history = logits_of(6), [3, 8, 8, 50, 60]
    bias = {3: 5.0, 8: -4.0, 70: 1.0}
    theirs = mx.array(logits)[None]
    for process in make(bias, 1.7, 4):
        theirs = process(mx.array(history), theirs)
    rules = Sampling(logit_bias=bias, repetition_penalty=1.7, repetition_context_size=4)
    wanted = softmax64(np.array(theirs)[0])
    ours = np.exp(logprobs_of(rules, logits, history))
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_log_probabilities_are_float32_and_normalised(dtype):
    token, logprobs = Sampler(Sampling())(mx.array(logits_of(0)).astype(dtype))
    assert logprobs.dtype == mx.float32
    assert abs(float(mx.logsumexp(logprobs))) < 1e-5
    assert token.shape == ()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temp", [-1, math.nan, math.inf]),
        ("top_p", [0, -0.1, 5, math.nan]),
        ("top_k", [-3]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0, -1, math.nan, math.inf]),
        ("repetition_context_size", [0, -1]),
        ("logit_bias", [{1: math.nan}, {1: math.inf}]),
        ("seed", [-1, 1 << 64]),
    ],
)
def test_bad_values(field, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"\[sample\] {field} must be"):
            Sampling(**{field: value})


def test_the_largest_seed():
    rules = Sampling(temp=1.0, seed=(1 << 64) - 1)
    assert draw(rules, logits_of(0)).shape == (1,)


def test_a_temperature_next_to_zero_is_greedy():
    """float32 could not divide by it: every logit would be infinite."""
    logits = logits_of(0)
    token, _ = Sampler(Sampling(temp=1e-40, seed=1))(mx.array(logits))
    assert int(token.item()) == int(np.argmax(logits))
