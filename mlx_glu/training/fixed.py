"""Parameters that a checkpoint holds and no optimizer moves."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn


def fix(module: nn.Module, *names: str) -> None:
    """Freeze parameters for good, whatever ``unfreeze`` of a model asks.

    MLX unfreezes the children of a module without asking their own ``unfreeze``, and
    then an optimizer's weight decay moves also what has no gradient.

    Args:
        module: has them; none of it is frozen yet.
        names: of its own parameters.
    """
    module._no_grad = _Frozen(names)


class _Frozen(set[str]):
    """What MLX keeps in a module as frozen; the first names of it stay."""

    def __init__(self, always: Any) -> None:
        super().__init__(always)
        self.always = frozenset(self)

    def clear(self) -> None:
        super().clear()
        self.update(self.always)

    def difference_update(self, *others: Any) -> None:
        super().difference_update(*others)
        self.update(self.always)
