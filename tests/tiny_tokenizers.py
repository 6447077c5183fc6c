"""Two small real vocabularies, as the metadata of GGUF files."""

import mlx.core as mx

from mlx_glu.tokenizer.tokenizers_backend import byte_level_alphabet

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["▁H", "▁He", "ll", "llo", "▁Hello", "▁w", "or", "▁wor", "ld", "▁world", "▁▁"]


def byte_level_metadata(**changes):
    """All bytes, a few merges, ChatML tokens. ids: 0-2 special, 3 user-defined."""
    merges = ["l l", "ll o", "H e", "He llo", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"]
    alphabet = [c for c, _ in sorted(byte_level_alphabet().items(), key=lambda x: x[1])]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think a>", *alphabet]
    tokens += [merge.replace(" ", "") for merge in merges]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": mx.array([3, 3, 3, 4] + [1] * (len(tokens) - 4)),
        "tokenizer.ggml.bos_token_id": mx.array(1),
        "tokenizer.ggml.eos_token_id": mx.array(0),
        "tokenizer.ggml.padding_token_id": mx.array(-1),
        "tokenizer.ggml.add_bos_token": mx.array(False),
        "tokenizer.chat_template": CHATML,
    }
    return changed(metadata, changes)


def llama_metadata(**changes):
    """Byte pieces, letters and two words; ids: 0 unk, 1 bos, 2 eos, 3-258 bytes."""
    letters = [*"▁Helowrdabc<>/s[]INT!."]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(letters) + len(WORDS)) + [4, 3]
    tokens += [*letters, *WORDS, "<tool>", "<|end|>"]
    # sentencepiece merges the best score first.
    scores = [0.0] * 259 + [-100.0] * len(letters)
    scores += [-float(i) for i in range(len(WORDS))] + [0.0, 0.0]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": mx.array(scores),
        "tokenizer.ggml.token_type": mx.array(types),
        "tokenizer.ggml.unknown_token_id": mx.array(0),
        "tokenizer.ggml.bos_token_id": mx.array(1),
        "tokenizer.ggml.eos_token_id": mx.array(2),
    }
    return changed(metadata, changes)


def changed(metadata, changes):
    """Replace keys by their last part; None removes one."""
    for key, value in changes.items():
        name = key if key in metadata else f"tokenizer.ggml.{key}"
        name = "tokenizer.chat_template" if key == "chat_template" else name
        metadata[name] = value
        if value is None:
            del metadata[name]
    return metadata
