"""Hugging Face's DeepSeek-V3 mixture and load-balancing loss on random numbers.

Run in the environment of scripts/hf_reference.py. Writes tests/data/moe.npz: in
float32, as transformers computes them, from the arrays of tests/tiny_mixture.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

import tiny_mixture as tiny  # noqa: E402


def main() -> None:
    arrays = {k: torch.from_numpy(v) for k, v in tiny.arrays().items()}
    with torch.no_grad():
        found = {
            f"deepseek_{norm}": deepseek(arrays, norm_topk_prob=norm).numpy()
            for norm in (True, False)
        }
        logits = tuple(arrays["logits"])
        for name, mask in (("loss", None), ("masked_loss", arrays["mask"])):
            how = logits[0].shape[-1], tiny.CHOSEN, mask
            found[name] = load_balancing_loss_func(logits, *how).numpy()
    np.savez_compressed(TESTS / "data" / "moe.npz", **found)
    print({k: v.shape or float(v) for k, v in found.items()})


def deepseek(arrays: dict[str, torch.Tensor], **settings: bool) -> torch.Tensor:
    """[T, K] of a mixture whose experts are in one group."""
    block = DeepseekV3MoE(
        DeepseekV3Config(**tiny.MIXTURE, n_group=1, topk_group=1, **settings)
    )
    own = {k: v for k, v in arrays.items() if k in block.state_dict()}
    block.load_state_dict(own)
    return block(arrays["x"][None])[0]


if __name__ == "__main__":
    main()
