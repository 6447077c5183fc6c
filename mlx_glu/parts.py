"""The parts of a language model, by the paths of its modules."""

#: Last names of the projections of a gated feed-forward.
FFN = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
_EXPERTS = ("experts", "switch_mlp")


def part_of(path: str) -> str:
    """The part that a module or a tensor belongs to.

    Shared experts, which every token goes through, are FFN; routers are other.

    Returns:
        "embeddings", "attention", "FFN", "experts", "head" or "other".
    """
    names = path.split(".")
    if "lm_head" in names:
        return "head"
    if any(name.startswith("embed") for name in names):
        return "embeddings"
    if any(name in FFN for name in names):
        return "experts" if any(name in _EXPERTS for name in names) else "FFN"
    if any("attn" in name and "norm" not in name for name in names):
        return "attention"
    return "other"
