"""Key-value caches against a list that forgets nothing."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_glu.cache import KVCache, RotatingKVCache

B, H, D = 2, 2, 4


def rows(start, length, seed):
    """[B, H, L, D] keys, values or queries of positions; depend on those alone."""
    parts = [
        np.random.default_rng([seed, p]).normal(size=(B, H, 1, D))
        for p in range(start, start + length)
    ]
    return np.concatenate(parts, axis=2).astype(np.float32)


def attend64(q, k, v, visible):
    """Softmax attention in float64; ``visible`` is [L, S]."""
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2).astype(np.float64)
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64)


def check(cache, window, chunks):
    """Attention over the cache is that over all positions, seen through a window."""
    offset = 0
    for length in chunks:
        q, k, v = (rows(offset, length, seed) for seed in range(3))
        mask = cache.mask(length)
        keys, values = cache.update(mx.array(k), mx.array(v))
        y = mx.fast.scaled_dot_product_attention(
            mx.array(q), keys, values, scale=1.0, mask=mask
        )
        offset += length
        assert cache.offset == offset
        key, query = np.arange(offset), np.arange(offset - length, offset)[:, None]
        visible = (key <= query) & (key > query - (window or offset))
        wanted = attend64(q, rows(0, offset, 1), rows(0, offset, 2), visible)
        np.testing.assert_allclose(np.array(y), wanted, rtol=2e-4, atol=2e-5)
        if window:
            limit = -(-window // cache.step) * cache.step
            assert all(a.shape[2] <= limit for a in cache.state)


CHUNKS = st.lists(
    st.one_of(st.just(1), st.integers(1, 12)), min_size=1, max_size=10
).filter(lambda chunks: sum(chunks) <= 60)


@settings(max_examples=40, deadline=None)
@given(chunks=CHUNKS)
def test_the_growing_cache(chunks):
    check(KVCache(), None, chunks)


@settings(max_examples=150, deadline=None)
@given(window=st.integers(1, 10), chunks=CHUNKS)
@example(window=1, chunks=[1, 1, 3, 1])
@example(window=4, chunks=[4, 4, 1])
@example(window=4, chunks=[9, 1, 1])
@example(window=4, chunks=[3, 1, 1, 2, 1])
@example(window=4, chunks=[1, 1, 1, 1, 1, 7, 1])
@example(window=5, chunks=[2, 7, 1, 1, 1, 1, 1, 1, 2])
def test_the_rotating_cache(window, chunks):
    check(RotatingKVCache(window), window, chunks)


@pytest.mark.parametrize("chunks", [[255, 1, 1, 1], [256, 1, 2], [250, 20, 1], [600]])
def test_growing_beyond_a_step(chunks):
    check(KVCache(), None, chunks)


@pytest.mark.parametrize(
    ("window", "chunks"),
    [
        (256, [255, 1, 1, 1]),
        (257, [250, 6, 1, 1, 1]),
        (300, [255, 1, 1, 60, 1, 1]),
        (200, [199, 1, 1]),
        (8, [300, 1, 9]),
    ],
)
def test_windows_about_a_step(window, chunks):
    check(RotatingKVCache(window), window, chunks)


def test_masks():
    """None for one token, causal while the window reaches, else its band."""
    cache = RotatingKVCache(3)
    assert cache.mask(1) is None
    assert cache.mask(3) == "causal"
    band = np.array(cache.mask(4)).astype(int).tolist()
    assert band == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]
    cache.update(*(mx.zeros((B, H, 5, D)),) * 2)
    assert np.array(cache.mask(2)).astype(int).tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]
    assert cache.mask(1) is None
    assert KVCache().mask(1) is None
    assert KVCache().mask(2) == "causal"


def test_a_window_bounds_memory():
    """A step at most, however long the text."""
    cache = RotatingKVCache(8)
    for length in [100, *[1] * 20, 30]:
        cache.update(*(mx.zeros((B, H, length, D)),) * 2)
        assert all(a.shape[2] == 8 for a in cache.state)


def test_values_may_be_of_another_size():
    cache = KVCache()
    keys, values = cache.update(mx.zeros((1, 1, 3, 4)), mx.ones((1, 1, 3, 6)))
    assert (keys.shape[-1], values.shape[-1]) == (4, 6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_the_dtype_is_kept(dtype):
    for cache in (KVCache(), RotatingKVCache(2)):
        for length in (1, 1, 3, 1):
            pair = cache.update(*(mx.zeros((1, 1, length, 4), dtype),) * 2)
            assert {a.dtype for a in (*pair, *cache.state)} == {dtype}
