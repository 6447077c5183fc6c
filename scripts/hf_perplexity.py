"""Hugging Face's perplexity of a folder's model, in float32 on the CPU.

Run in an environment of its own; neither package is a dependency:

    python -m venv .venv-hf
    .venv-hf/bin/pip install torch transformers==5.23.0 sentencepiece protobuf
    .venv-hf/bin/python scripts/hf_perplexity.py FOLDER TOKENS < text

Prints one JSON line: the ids that its tokenizer gives for stdin, at most TOKENS, and
the perplexity of all but the first, summed in float64.
"""

import json
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, tokens = sys.argv[1], int(sys.argv[2])
    ids = AutoTokenizer.from_pretrained(folder)(sys.stdin.read()).input_ids[:tokens]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    batch = torch.tensor([ids])
    with torch.no_grad():
        logits = model(batch).logits[0, :-1]
    losses = [
        torch.nn.functional.cross_entropy(row.double(), target).item()
        for row, target in zip(logits, batch[0, 1:], strict=True)
    ]
    perplexity = math.exp(math.fsum(losses) / len(losses))
    print(json.dumps({"ids": ids, "perplexity": perplexity}))


if __name__ == "__main__":
    main()
