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

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

import tiny_checkpoint as tiny  # noqa: E402

#: Below, at and beyond every window and context length of the cases.
POSITIONS = (0, 13, 31, 39)


def main() -> None:
    for name in sys.argv[1:] or tiny.CASES:
        model = build(tiny.CASES[name])
        with torch.no_grad():
            logits = model(torch.from_numpy(tiny.token_ids())).logits.double().numpy()
        shapes = {k: list(p.shape) for k, p in model.named_parameters()}
        np.savez_compressed(
            TESTS / "data" / "hf" / f"{name}.npz",
            positions=np.array(POSITIONS),
            logits=logits[:, POSITIONS],
            config=np.array(json.dumps(model.config.to_dict())),
            shapes=np.array(json.dumps(shapes)),
        )
        print(f"{name:12} largest |logit| {np.abs(logits).max():.3f}")


def build(config: dict[str, object]) -> torch.nn.Module:
    """Hugging Face's model of a config, in float64, with the tests' weights."""
    settings = {k: v for k, v in config.items() if k != "model_type"}
    hf_config = AutoConfig.for_model(config["model_type"], **settings)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager")
    model = model.double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            value = tiny.tensor(key, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(value).double())
    return model


if __name__ == "__main__":
    main()
