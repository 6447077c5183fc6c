"""Each expert's tensors alone, or all of them packed, as stacks of projections."""

import re
from collections.abc import Mapping

from ..checkpoints.arrangement import (
    Arrangement,
    Piece,
    Tensors,
    renamed,
    rows,
    stacked,
)
from ..tensor_info import TensorInfo

#: How routers are packed, as in mlx-lm: fewer bits choose other experts.
ROUTER: dict[str, object] = {"group_size": 64, "bits": 8}

_LAYER = r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)"
_EACH = re.compile(_LAYER + r"\.experts\.(\d{1,6})\.(\w+)\.(weight|scales|biases)")
_PACKED = re.compile(_LAYER + r"\.experts\.(gate_up_proj|down_proj)")
_ROUTER = re.compile(_LAYER + r"\.(gate\.\w+)")


def arrange_experts(
    tensors: Tensors, count: int, block: str, names: Mapping[str, str] | None = None
) -> Arrangement:
    """Experts under ``BLOCK.switch_mlp``, and their router.

    Args:
        tensors: of the checkpoint.
        count: E.
        block: our name of the mixture in a layer.
        names: of the projections on disk -> ours, where they differ.

    Returns:
        Stacks [E, N, K] of gate_proj, up_proj and down_proj, packed or not.

    Raises:
        ValueError: experts are missing, too many, or unlike each other.
    """
    found = Arrangement()
    alone: dict[str, dict[int, str]] = {}
    for name, info in tensors.items():
        if each := _EACH.fullmatch(name):
            layer, index, own, part = each.groups()
            own = (names or {}).get(own, own)
            target = f"{layer}.{block}.switch_mlp.{own}.{part}"
            alone.setdefault(target, {})[int(index)] = name
        elif packed := _PACKED.fullmatch(name):
            layer, own = packed.groups()
            found.pieces |= unpacked(name, info, f"{layer}.{block}.switch_mlp", own)
        elif router := _ROUTER.fullmatch(name):
            target = f"{router[1]}.{block}.{router[2]}"
            found.pieces[target] = renamed(name, info)
    for target, own_names in alone.items():
        stack = [own_names[i] for i in sorted(own_names)]
        _check(stack, own_names.keys() == {*range(count)}, count, tensors)
        found.pieces[target] = stacked(stack, tensors[stack[0]])
    return found


def unpacked(name: str, info: TensorInfo, target: str, own: str) -> dict[str, Piece]:
    """A packed stack as those of the layers of ``target``.

    Args:
        name: of the stored tensor, [E, 2 N, K] or, of ``down_proj``, [E, K, N].
        info: its dtype and shape.
        target: path of the `SwitchGLU`.
        own: ``gate_up_proj``, the gate's rows first, or ``down_proj``.

    Raises:
        ValueError: gate and up cannot be halves of it.
    """
    if own == "down_proj":
        return {f"{target}.down_proj.weight": renamed(name, info)}
    if len(info.shape) != 3 or info.shape[1] % 2:
        raise ValueError(
            f"[load] {name} must be [experts, gate and up, inputs], "
            f"got {list(info.shape)}"
        )
    N = info.shape[1] // 2
    return {
        f"{target}.gate_proj.weight": rows(name, info, slice(N), axis=1),
        f"{target}.up_proj.weight": rows(name, info, slice(N, 2 * N), axis=1),
    }


def _check(stack: list[str], complete: bool, count: int, tensors: Tensors) -> None:
    first = stack[0]
    if not complete:
        raise ValueError(
            f"[load] the config has {count} experts, but there are {len(stack)} "
            f"tensors like {first!r}, or with other numbers"
        )
    for name in stack:
        if tensors[name] != tensors[first]:
            (dtype, shape), (other, wanted) = tensors[name], tensors[first]
            raise ValueError(
                f"[load] experts are alike, but {name} is {dtype} {list(shape)} and "
                f"{first} is {other} {list(wanted)}"
            )
