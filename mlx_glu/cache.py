"""Key-value caches: one that grows, one that keeps a sliding window."""

import mlx.core as mx


class KVCache:
    """Keys and values of every position so far, in buffers that grow in steps.

    Attributes:
        offset: tokens seen, which is the next token's position.
        expected: tokens that are known to come, these included; a rotation that
            depends on the length sees no less. 0 where nothing is known.
    """

    step = 256

    def __init__(self) -> None:
        self.offset = self.expected = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append [B, H, L, D] and return all keys and values, oldest first."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        if self.keys is None or self.offset > self.keys.shape[2]:
            self.keys = self._grow(self.keys, keys, start)
            self.values = self._grow(self.values, values, start)
        assert self.values is not None
        self.keys[..., start : self.offset, :] = keys
        self.values[..., start : self.offset, :] = values
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    def mask(self, length: int) -> mx.array | str | None:
        """The mask of the next ``length`` queries against what `update` returns."""
        return "causal" if length > 1 else None

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate between chunks of a prompt."""
        return [a for a in (self.keys, self.values) if a is not None]

    def _grow(self, old: mx.array | None, new: mx.array, used: int) -> mx.array:
        B, H, L, D = new.shape
        room = -(-(used + L) // self.step) * self.step - used
        fresh = mx.zeros((B, H, room, D), new.dtype)
        if old is None:
            return fresh
        return mx.concatenate([old[..., :used, :], fresh], axis=2)


class RotatingKVCache(KVCache):
    """The last ``window`` positions only, for layers with a sliding window.

    A single token overwrites the oldest slot: attention does not depend on the
    order of keys that are all visible, and each key carries its own rotation.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append [B, H, L, D]; return what the L queries may see, oldest first.

        For one token the order is that of the ring buffer.
        """
        L = keys.shape[2]
        if self.offset + L <= self.window:
            return super().update(keys, values)
        if L == 1:
            return self._overwrite(keys, values)
        seen = self._in_order(self.keys), self._in_order(self.values)
        keys = mx.concatenate([*seen[0], keys], axis=2)
        values = mx.concatenate([*seen[1], values], axis=2)
        self.offset += L
        self.keys, self.values = self._ring(keys), self._ring(values)
        return keys, values

    def mask(self, length: int) -> mx.array | str | None:
        """The mask of the next ``length`` queries against what `update` returns."""
        if length == 1:
            return None
        if self.offset + length <= self.window:
            return "causal"
        behind = min(self.offset, self.window - 1)
        query = mx.arange(behind, behind + length)[:, None]
        key = mx.arange(behind + length)[None]
        return (key <= query) & (key > query - self.window)

    def _overwrite(self, key: mx.array, value: mx.array) -> tuple[mx.array, mx.array]:
        assert self.keys is not None
        assert self.values is not None
        if self.keys.shape[2] > self.window:
            self.keys = self.keys[..., : self.window, :]
            self.values = self.values[..., : self.window, :]
        slot = self.offset % self.window
        self.keys[..., slot : slot + 1, :] = key
        self.values[..., slot : slot + 1, :] = value
        self.offset += 1
        return self.keys, self.values

    def _in_order(self, ring: mx.array | None) -> list[mx.array]:
        """Up to ``window - 1`` last positions, oldest first."""
        if ring is None:
            return []
        if self.offset < self.window:
            return [ring[..., : self.offset, :]]
        # The oldest kept position lies outside every new query's window.
        slot = self.offset % self.window
        return [ring[..., slot + 1 : self.window, :], ring[..., :slot, :]]

    def _ring(self, ordered: mx.array) -> mx.array:
        """The last ``window`` positions, position p in slot p % window."""
        last = ordered[..., -self.window :, :]
        return mx.roll(last, self.offset % self.window, 2)
