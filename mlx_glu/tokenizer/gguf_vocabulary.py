"""Read the vocabulary in the metadata of a GGUF file, with suspicion.

Keys: github.com/ggml-org/ggml, docs/gguf.md, section Tokenizer.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import sentencepiece_proto as proto
from .tokenizers_backend import AddedToken

_ROLES = {
    "unk": "tokenizer.ggml.unknown_token_id",
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
_REQUIRED = object()


class Vocabulary(NamedTuple):
    """The checked vocabulary of a GGUF file.

    Attributes:
        tokens: the tokens, all different, in the order of their ids.
        types: a type of ``sentencepiece_proto`` for each.
        roles: ids of ``unk``, ``bos``, ``eos`` and ``pad``, those that there are.
        add_bos: put BOS in front of a text; None if the file does not say.
        add_eos: put EOS after it.
    """

    tokens: list[str]
    types: list[int]
    roles: dict[str, int]
    add_bos: bool | None
    add_eos: bool

    @property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def added(self) -> dict[int, AddedToken]:
        """The tokens matched in text before BPE, by id."""
        return {
            i: AddedToken(self.tokens[i], special=kind != proto.USER_DEFINED)
            for i, kind in enumerate(self.types)
            if kind in (proto.UNKNOWN, proto.CONTROL, proto.USER_DEFINED)
        }

    def around(self, add_bos: bool) -> dict[str, list[str]]:
        """The ``prefix`` and ``suffix`` of a text; ``add_bos`` if the file is mute."""
        add_bos = add_bos if self.add_bos is None else self.add_bos
        wanted = {"bos": add_bos, "eos": self.add_eos}
        names = {
            role: [self.tokens[self.roles[role]]] if yes and role in self.roles else []
            for role, yes in wanted.items()
        }
        return {"prefix": names["bos"], "suffix": names["eos"]}


def read_value(metadata: Mapping[str, Any], key: str, default: Any = _REQUIRED) -> Any:
    """A value as a Python object: arrays become lists or numbers.

    Raises:
        ValueError: the key is missing and there is no default.
    """
    value = metadata.get(key, default)
    if value is _REQUIRED:
        raise ValueError(
            f"[gguf] the metadata has no {key}, which a GGUF file with a tokenizer "
            "has; export the model again with llama.cpp's convert_hf_to_gguf.py"
        )
    return value.tolist() if hasattr(value, "tolist") else value


def read_numbers(metadata: Mapping[str, Any], key: str, size: int) -> list[Any]:
    """A list with one finite number for each token.

    Raises:
        ValueError: it is no such list.
    """
    values = read_value(metadata, key)
    if not isinstance(values, list) or len(values) != size:
        got = len(values) if isinstance(values, list) else repr(values)[:40]
        raise ValueError(
            f"[gguf] {key} has one number for each of the {size} tokens, not {got}; "
            "the file is damaged"
        )
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        raise ValueError(f"[gguf] {key} has a value that is no finite number")
    return values


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read and check the vocabulary.

    Args:
        metadata: as in ``GGUFFile.metadata``, or as MLX reads it.

    Returns:
        The vocabulary.

    Raises:
        ValueError: a key is missing, or its value cannot be.
    """
    tokens = _read_tokens(metadata)
    types = read_numbers(metadata, "tokenizer.ggml.token_type", len(tokens))
    if bad := [
        kind for kind in types if kind not in range(proto.NORMAL, proto.BYTE + 1)
    ]:
        raise ValueError(
            f"[gguf] tokenizer.ggml.token_type has {bad[0]}; types are {proto.NORMAL} "
            f"to {proto.BYTE}"
        )
    roles = {}
    for role, key in _ROLES.items():
        index = read_value(metadata, key, None)
        if index in (None, -1, 0xFFFFFFFF):  # -1 and its unsigned form mean none
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise ValueError(
                f"[gguf] {key} is {index!r}, but the vocabulary has the ids 0 to "
                f"{len(tokens) - 1}; the file is damaged"
            )
        roles[role] = index
    add_bos = read_value(metadata, "tokenizer.ggml.add_bos_token", None)
    return Vocabulary(
        tokens=tokens,
        types=[int(kind) for kind in types],
        roles=roles,
        add_bos=None if add_bos is None else bool(add_bos),
        add_eos=bool(read_value(metadata, "tokenizer.ggml.add_eos_token", False)),
    )


def _read_tokens(metadata: Mapping[str, Any]) -> list[str]:
    key = "tokenizer.ggml.tokens"
    tokens = read_value(metadata, key)
    is_list = isinstance(tokens, list) and all(isinstance(t, str) for t in tokens)
    if not is_list or not tokens:
        raise ValueError(f"[gguf] {key} is a list of strings, not {str(tokens)[:60]!r}")
    # llama.cpp gives the same name to an empty token.
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise ValueError(f"[gguf] {key} has {token!r} twice; tokens are unique")
        seen.add(token)
    return tokens
