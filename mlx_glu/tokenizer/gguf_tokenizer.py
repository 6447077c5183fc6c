"""Rebuild tokenizer files from the metadata of a GGUF file.

``gpt2`` vocabularies (byte-level BPE) become a tokenizer.json, ``llama`` ones
(sentencepiece BPE) a tokenizer.model. What a missing key means and how text after a
special token is treated: llama.cpp, src/llama-vocab.cpp.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import sentencepiece_proto as proto
from .gguf_vocabulary import Vocabulary, read_numbers, read_value, read_vocabulary
from .pre_tokenizers import PRE_TOKENIZERS
from .sentencepiece_backend import load_model
from .tokenizer_json import byte_level_tokenizer, llama_tokenizer


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write the tokenizer of a GGUF file as Hugging Face tokenizer files.

    Writes tokenizer.json, or tokenizer.model for sentencepiece (with a tokenizer.json
    beside it if text gets a space in front: transformers 5 encodes runs of spaces
    differently from such a tokenizer.model alone), tokenizer_config.json with the
    chat template, and special_tokens_map.json.

    Args:
        metadata: ``GGUFFile.metadata``, or what MLX reads; values may be arrays,
            numbers, strings or lists.
        folder: where to write; must exist.

    Raises:
        ValueError: a key is missing or its value cannot be; the vocabulary is of
            another kind than ``gpt2`` or ``llama``, or split by an unknown rule.
            Nothing is written then.
    """
    model = read_value(metadata, "tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"[gguf] tokenizer.ggml.model is {model!r}; read are 'gpt2' (byte-level "
            "BPE) and 'llama' (sentencepiece)"
        )
    vocabulary = read_vocabulary(metadata)
    template = read_value(metadata, "tokenizer.chat_template", None)
    if template is not None and not isinstance(template, str):
        raise ValueError(
            f"[gguf] tokenizer.chat_template is a string, not {str(template)[:60]!r}"
        )
    write = _write_byte_level if model == "gpt2" else _write_sentencepiece
    config = write(metadata, vocabulary, folder)
    special = {
        f"{role}_token": vocabulary.tokens[index]
        for role, index in vocabulary.roles.items()
    }
    # An absent BOS is written as null: transformers would take a default.
    config = {"bos_token": None, "eos_token": None, **special, **config}
    config["clean_up_tokenization_spaces"] = False
    config |= {"chat_template": template} if template else {}
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def _write_byte_level(
    metadata: Mapping[str, Any], vocabulary: Vocabulary, folder: Path
) -> dict[str, Any]:
    name = read_value(metadata, "tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"[gguf] tokenizer.ggml.pre is {name!r}, a way to split text that is not "
            f"known; known are {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    pre, ids = PRE_TOKENIZERS[name], vocabulary.ids
    content = byte_level_tokenizer(
        ids,
        _read_merges(metadata, ids),
        pre,
        added=vocabulary.added,
        **vocabulary.around(add_bos=pre.add_bos),
    )
    _write_json(folder / "tokenizer.json", content)
    return {"tokenizer_class": "PreTrainedTokenizerFast"}


def _read_merges(
    metadata: Mapping[str, Any], ids: dict[str, int]
) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    merges = read_value(metadata, key)
    if not isinstance(merges, list):
        raise ValueError(f"[gguf] {key} is a list of strings, not {str(merges)[:60]!r}")
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("",) * 3
        if left not in ids or right not in ids or left + right not in ids:
            raise ValueError(
                f"[gguf] {key} has {str(merge)[:60]!r}, not two tokens of the "
                "vocabulary that make a third; the file is damaged"
            )
        pairs.append((left, right))
    return pairs


def _write_sentencepiece(
    metadata: Mapping[str, Any], vocabulary: Vocabulary, folder: Path
) -> dict[str, Any]:
    tokens = vocabulary.tokens
    scores = read_numbers(metadata, "tokenizer.ggml.scores", len(tokens))
    unk = vocabulary.roles.get("unk", vocabulary.ids.get("<unk>"))
    if unk is None:
        raise ValueError(
            "[gguf] the metadata has no tokenizer.ggml.unknown_token_id and no token "
            "<unk>, which a sentencepiece vocabulary needs"
        )
    # sentencepiece wants exactly one unknown piece; Gemma's files call it control.
    types = [proto.CONTROL if t == proto.UNKNOWN else t for t in vocabulary.types]
    types[unk] = proto.UNKNOWN
    prefix = bool(read_value(metadata, "tokenizer.ggml.add_space_prefix", True))
    ids = {"bos": -1, "eos": -1, "pad": -1, **vocabulary.roles, "unk": unk}
    data = proto.write_model(
        list(zip(tokens, scores, types, strict=True)),
        ids=ids,
        add_dummy_prefix=prefix,
        byte_fallback=proto.BYTE in types,
    )
    path = folder / "tokenizer.model"
    load_model(data, f"{path}, made from the GGUF file's tokenizer.ggml keys,")
    path.write_bytes(data)
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": tokens[unk],
        "add_bos_token": vocabulary.add_bos is not False,
        "add_eos_token": vocabulary.add_eos,
    }
    if not prefix:
        return config
    content = llama_tokenizer(
        vocabulary.ids,
        {
            token: score
            for token, score, kind in zip(tokens, scores, types, strict=True)
            if kind in (proto.NORMAL, proto.USER_DEFINED)
        },
        unk=tokens[unk],
        added=vocabulary._replace(types=types).added,
        **vocabulary.around(add_bos=True),
    )
    _write_json(folder / "tokenizer.json", content)
    # Like llama.cpp, put a space before text after a special token too.
    return {**config, "tokenizer_class": "PreTrainedTokenizerFast", "legacy": True}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # Without indent: json writes a vocabulary three times faster.
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
