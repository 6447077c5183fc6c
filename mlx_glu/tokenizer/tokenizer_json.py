"""The content of a ``tokenizer.json``: byte-level BPE, and LLaMA-2's kind.

Written as plain JSON, so that a vocabulary converts without the ``tokenizers``
library. Source of the format: huggingface/tokenizers, serialisation of each part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .pre_tokenizers import PreTokenizer
from .tokenizers_backend import AddedToken

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def byte_level_tokenizer(
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    pre: PreTokenizer,
    *,
    added: Mapping[int, AddedToken],
    prefix: Sequence[str] = (),
    suffix: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe a byte-level BPE tokenizer.

    Args:
        ids: the id of every token, added ones too.
        merges: pairs in the order of their rank.
        pre: how text is split.
        added: tokens by id that are matched in the text first.
        prefix: tokens to put in front of a text, such as BOS.
        suffix: tokens to put after it.

    Returns:
        An object to write as JSON.
    """
    splits = [
        {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        }
        for regex in pre.regexes
    ]
    bytes_only = {**_BYTE_LEVEL, "use_regex": False}
    return _tokenizer(
        added,
        normalizer={"type": "NFC"} if pre.nfc else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*splits, bytes_only]},
        post_processor=_around(ids, prefix, suffix) or bytes_only,
        decoder={**_BYTE_LEVEL, "use_regex": True},
        model={**_bpe(ids, merges), "ignore_merges": pre.ignore_merges},
    )


def llama_tokenizer(
    ids: Mapping[str, int],
    scores: Mapping[str, float],
    *,
    unk: str,
    added: Mapping[int, AddedToken],
    prefix: Sequence[str] = (),
    suffix: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe a sentencepiece BPE with a dummy prefix, as LLaMA-2's tokenizer.json.

    Args:
        ids: the id of every piece.
        scores: the score of each piece that BPE can make.
        unk: the unknown piece.
        added: as in :func:`byte_level_tokenizer`.
        prefix: as there.
        suffix: as there.

    Returns:
        An object to write as JSON.
    """
    space, string = "\u2581", {"String": "\u2581"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": space}
    prepend = {"type": "Prepend", "prepend": space}
    steps = [
        {"type": "Replace", "pattern": string, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    model = _bpe(ids, _merges_of_scores(ids, scores))
    model |= {"unk_token": unk, "fuse_unk": True, "byte_fallback": True}
    return _tokenizer(
        added,
        normalizer={"type": "Sequence", "normalizers": [prepend, replace]},
        pre_tokenizer=None,
        post_processor=_around(ids, prefix, suffix),
        decoder={"type": "Sequence", "decoders": steps},
        model=model,
    )


def _merges_of_scores(
    ids: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a piece; the best score ranks first."""
    ranked = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                ranked.append((-score, ids[left], ids[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _tokenizer(added: Mapping[int, AddedToken], **parts: Any) -> dict[str, Any]:
    tokens = [{"id": index, **asdict(added[index])} for index in sorted(added)]
    head = {"version": "1.0", "truncation": None, "padding": None}
    return {**head, "added_tokens": tokens, **parts}


def _bpe(ids: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }


def _around(
    ids: Mapping[str, int], prefix: Sequence[str], suffix: Sequence[str]
) -> dict[str, Any] | None:
    """The post-processor that adds tokens to a text, None for none to add."""
    tokens = sorted({*prefix, *suffix})
    if not tokens:
        return None

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        before = [{"SpecialToken": {"id": t, "type_id": type_id}} for t in prefix]
        after = [{"SpecialToken": {"id": t, "type_id": type_id}} for t in suffix]
        return [*before, {"Sequence": {"id": name, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]}
            for token in tokens
        },
    }
