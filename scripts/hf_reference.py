"""Logits of Hugging Face's own models on the tests' tiny checkpoints.

Run in an environment of its own; neither package is a dependency:

    python -m venv .venv-hf
    .venv-hf/bin/pip install torch transformers==5.23.0
    .venv-hf/bin/python scripts/hf_reference.py [CASE...]

Writes tests/data/hf/CASE.npz for each case of tests/tiny_checkpoint.py: its float64
logits at four positions, its config.json as transformers 5 writes it, and the names
and shapes of its parameters.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

import tiny_checkpoint as tiny  # noqa: E402
import tiny_experts  # noqa: E402

#: Below, at and beyond every window and context length of the cases.
POSITIONS = (0, 13, 31, 39)
PACKED = {k: tiny.config_of(kind, **c) for k, (kind, c) in tiny_experts.PACKED.items()}


def main() -> None:
    cases = tiny.CASES | PACKED
    for name in sys.argv[1:] or cases:
        model = build(cases[name])
        with torch.no_grad():
            logits = model(torch.from_numpy(tiny.token_ids())).logits.double().numpy()
        shapes = {k: list(p.shape) for k, p in stored(model).items()}
        np.savez_compressed(
            TESTS / "data" / "hf" / f"{name}.npz",
            positions=np.array(POSITIONS),
            logits=logits[:, POSITIONS],
            config=np.array(json.dumps(model.config.to_dict())),
            shapes=np.array(json.dumps(shapes)),
            **({"unpacked": unpacked(*tiny_experts.ALL)} if name in PACKED else {}),
        )
        print(f"{name:12} largest |logit| {np.abs(logits).max():.3f}")


def build(config: dict[str, object]) -> torch.nn.Module:
    """Hugging Face's model of a config, in float64, with the tests' weights."""
    beside = ("model_type", "quantization_config")
    settings = {k: v for k, v in config.items() if k not in beside}
    hf_config = AutoConfig.for_model(config["model_type"], **settings)
    how = dict.fromkeys(("attn_implementation", "experts_implementation"), "eager")
    model = AutoModelForCausalLM.from_config(hf_config, **how)
    model = model.double().eval()
    with torch.no_grad():
        for key, parameter in stored(model).items():
            shape = tuple(parameter.shape)
            value = torch.from_numpy(tiny.tensor(key, shape)).double()
            if "quantization_config" in config and len(shape) == 3:
                value = unpacked(*tiny_experts.mxfp4(key, shape))
            parameter.copy_(value)
    return model


def unpacked(blocks: np.ndarray, scales: np.ndarray) -> torch.Tensor:
    """What Hugging Face makes of gpt-oss's packed experts."""
    arrays = map(torch.from_numpy, (blocks, scales))
    return convert_moe_packed_tensors(*arrays, dtype=torch.float64)


def stored(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and buffers that a checkpoint has."""
    saved = model.state_dict().keys()
    buffers = {k: b for k, b in model.named_buffers() if k in saved}
    return dict(model.named_parameters()) | buffers


if __name__ == "__main__":
    main()
