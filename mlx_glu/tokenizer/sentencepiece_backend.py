"""The vocabulary of a ``tokenizer.model``, read by the sentencepiece library."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..untrusted import read_file
from . import sentencepiece_proto as proto
from .tokenizers_backend import AddedToken, piece_bytes

if TYPE_CHECKING:
    import tokenizers


#: Gemma's, one of the largest, has 5 MB.
MAX_BYTES = 16 << 20


class SentencePieceBackend:
    """A ``tokenizer.model``, with the prefix rules of HF's LlamaTokenizer.

    Control and user-defined pieces are split out of the text, like added tokens. A
    model with a dummy prefix puts a space before the text; before the text after a
    special token only if ``legacy``.

    Args:
        path: the file.
        added: tokens by id beyond those of the model, or in place of its pieces.
        named: tokens such as bos and eos, special if the vocabulary has them.
        legacy: LlamaTokenizer's ``legacy``.
        add_prefix_space: False switches the dummy prefix off.

    Raises:
        ValueError: the file is not a sentencepiece model.
    """

    def __init__(
        self,
        path: Path,
        added: Mapping[int, AddedToken],
        named: Iterable[str],
        *,
        legacy: bool = False,
        add_prefix_space: bool = True,
    ) -> None:
        data = read_file(path, MAX_BYTES)
        self._model = load_model(data, str(path))
        try:
            pieces, has_prefix = proto.read_model(data)
        except IndexError:  # what sentencepiece skips, we do not
            raise ValueError(
                f"[load_tokenizer] {path} holds more than a sentencepiece model"
            ) from None
        self._added = {
            index: AddedToken(piece, special=kind == proto.CONTROL)
            for index, (piece, kind) in pieces.items()
            if kind != proto.UNKNOWN
        }
        self._added.update(added)
        self._ids = {token.content: index for index, token in self._added.items()}
        self._name_special(named)
        # Text that gets no prefix needs a second copy of a model that adds one.
        self._plain_data = data + proto.WITHOUT_PREFIX if has_prefix else b""
        self._legacy = legacy
        self._prefix = has_prefix and add_prefix_space
        self.strip_left = int(self._prefix)
        self.added_ids = frozenset(self._added)
        self.special_ids = frozenset(i for i, t in self._added.items() if t.special)
        self.vocab_size: int = max([self._model.vocab_size() - 1, *self._added]) + 1

    def encode(self, text: str, *, post_process: bool = False) -> list[int]:
        """Encode text; this kind of file asks for no special tokens."""
        splitter, added_ids = self._splitter
        encoding = splitter.encode(text)
        ids: list[int] = []
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index:
                ids.append(added_ids[index])
            else:
                prefix = self._prefix and (start == 0 or self._legacy)
                model = self._model if prefix else self._plain_model
                ids += model.encode(text[start:end])
        return ids

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None if there is none."""
        if token in self._ids:
            return self._ids[token]
        index: int = self._model.piece_to_id(token)
        return index if self.id_to_token(index) == token else None

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None outside the vocabulary."""
        if index in self._added:
            return self._added[index].content
        if not 0 <= index < self._model.vocab_size():
            return None
        piece: str = self._model.id_to_piece(index)
        return piece

    def token_bytes(self, index: int) -> bytes:
        """The bytes of an id, none outside the vocabulary, as HF decodes it."""
        return piece_bytes(self.id_to_token(index) or "")

    def own_token(self, key: str) -> str | None:
        """The model's own ``bos_token`` or ``eos_token``."""
        model = self._model
        index: int = model.bos_id() if key == "bos_token" else model.eos_id()
        return self.id_to_token(index)

    def _name_special(self, named: Iterable[str]) -> None:
        for content in named:
            index = self.token_to_id(content)
            if index is not None and index not in self._added:
                self._added[index] = AddedToken(content, special=True)
                self._ids[content] = index

    @cached_property
    def _plain_model(self) -> Any:
        return load_model(self._plain_data, "") if self._plain_data else self._model

    @cached_property
    def _splitter(self) -> "tuple[tokenizers.Tokenizer, dict[int, int]]":
        """HF's own matcher of added tokens, and our ids of its ids; 0 is text."""
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        # All text between two added tokens is the one unknown word.
        splitter = Tokenizer(WordLevel({"": 0}, unk_token=""))
        tokens = {i: t for i, t in self._added.items() if t.content}
        splitter.add_tokens([token.native() for token in tokens.values()])
        ids = {splitter.token_to_id(t.content) or 0: i for i, t in tokens.items()}
        return splitter, ids


def load_model(data: bytes, name: str) -> Any:
    """Load a sentencepiece model from its bytes.

    Raises:
        ValueError: sentencepiece does not accept them; ``name`` says which file.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        if not data:  # taken for no argument at all
            raise RuntimeError("empty")
        return SentencePieceProcessor(model_proto=data)
    except Exception as error:  # RuntimeError or worse, by version
        hint = "was the download complete?"
        if data[:200].split(b"\n")[0].endswith((b" 0", b" 1")):
            hint = "this is a tiktoken file; take the tokenizer.json of the model"
        elif data.startswith(b"version https://git-lfs"):
            hint = "this is a git-lfs pointer; fetch the file itself"
        reason = str(error).splitlines()[0][:150] if str(error) else "no reason"
        raise ValueError(
            f"[load_tokenizer] {name} is not a sentencepiece model ({reason}); {hint}"
        ) from None
