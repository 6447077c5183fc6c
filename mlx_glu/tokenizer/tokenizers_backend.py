"""The vocabulary of a ``tokenizer.json``, read by the ``tokenizers`` library.

Text is made from the bytes of each token, not by the library's decoder: a stream
needs bytes, and the byte-fallback decoder replaces a whole run of byte tokens when
one of them is wrong.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from ..untrusted import read_file
from .tokenizer_json_checks import MAX_BYTES, check_tokenizer_json

if TYPE_CHECKING:
    import tokenizers

#: Real tokenizers encode a million characters a second.
MAX_SECONDS, CHARACTERS_PER_SECOND = 2.0, 20_000


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before the model sees it; fields as in HF."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False

    def native(self) -> "tokenizers.AddedToken":
        """The same for the ``tokenizers`` library."""
        from tokenizers import AddedToken as NativeToken

        return NativeToken(**asdict(self))


class TokenizersBackend:
    """A ``tokenizer.json``: the file decides about normalizer, splits and BOS.

    Args:
        path: the file.
        added: tokens by id from the other files; they override the flags here.
        named: tokens such as bos and eos, special if the vocabulary has them.

    Raises:
        ValueError: the file is broken, its decoder is unknown, or a token of
            ``added`` has another id here.
    """

    def __init__(
        self, path: Path, added: Mapping[int, AddedToken], named: Iterable[str]
    ) -> None:
        from tokenizers import Tokenizer

        data = read_file(path, MAX_BYTES)
        try:
            check_tokenizer_json(data)
            self._tokenizer = _native(Tokenizer.from_buffer, data)
        except ValueError as error:
            raise ValueError(
                f"[load_tokenizer] {path} is not a tokenizer of the tokenizers library "
                f"({str(error)[:200]}); was the download complete?"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add_tokens(path, added, named)
        tokens = self._tokenizer.get_added_tokens_decoder()
        self.added_ids = frozenset(tokens)
        self.special_ids = frozenset(i for i, t in tokens.items() if t.special)
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._byte_level, self.strip_left = _read_decoder(self._tokenizer, path)

    def encode(self, text: str, *, post_process: bool = False) -> list[int]:
        """Encode text; ``post_process`` adds the special tokens the file asks for.

        Raises:
            ValueError: the library fails, or a regular expression of the file takes
                for ever.
        """
        outcome: list[Any] = []

        def work() -> None:
            # Of all its methods, this one lets other threads run meanwhile.
            encode = self._tokenizer.encode_batch
            try:
                (encoding,) = _native(encode, [text], add_special_tokens=post_process)
                outcome.append(encoding.ids)
            except ValueError as error:
                outcome.append(error)

        seconds = MAX_SECONDS + len(text) / CHARACTERS_PER_SECOND
        thread = Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
        found = outcome[0] if outcome else f"it takes over {seconds:.0f} seconds"
        if isinstance(found, list):
            return found
        raise ValueError(
            f"[encode] this tokenizer.json cannot encode the text: {found}"
        )

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None if there is none."""
        index: int | None = self._tokenizer.token_to_id(token)
        return index

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None outside the vocabulary."""
        token: str | None = self._tokenizer.id_to_token(index) if index >= 0 else None
        return token

    def token_bytes(self, index: int) -> bytes:
        """The bytes of an id, none outside the vocabulary, as HF decodes it."""
        token = self.id_to_token(index) or ""
        return byte_level_bytes(token) if self._byte_level else piece_bytes(token)

    def own_token(self, key: str) -> str | None:
        """None: a tokenizer.json does not say which token is ``bos_token``."""
        return None

    def _add_tokens(
        self, path: Path, added: Mapping[int, AddedToken], named: Iterable[str]
    ) -> None:
        known = {t.content for t in self._tokenizer.get_added_tokens_decoder().values()}
        known |= {token.content for token in added.values()}
        tokens = [added[i].native() for i in sorted(added)]
        _native(self._tokenizer.add_tokens, tokens)
        for index, token in added.items():
            if (found := self.token_to_id(token.content)) != index:
                raise ValueError(
                    f"[load_tokenizer] {path.parent}: {token.content!r} has id {found} "
                    f"in tokenizer.json but {index} in tokenizer_config.json or "
                    "added_tokens.json; are these files of one model?"
                )
        for content in named:
            if content not in known and self.token_to_id(content) is not None:
                token = AddedToken(content, special=True)
                _native(self._tokenizer.add_special_tokens, [token.native()])


def _native(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the library; whatever it raises becomes a ValueError."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # often a bare Exception
        raise ValueError(str(error)) from None
    except BaseException as error:  # a panic of Rust is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from None


def piece_bytes(piece: str) -> bytes:
    """The bytes of a sentencepiece piece: ``<0xNN>`` is one byte, U+2581 a space."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes.fromhex(piece[3:5])
        except ValueError:
            pass
    return piece.replace("\u2581", " ").encode("utf-8", "replace")


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a GPT-2 token, which spells every byte as a printable character.

    A token with any other character, such as an added token with a space, stands
    for its own text.
    """
    table = byte_level_alphabet()
    try:
        return bytes([table[c] for c in token])
    except KeyError:
        return token.encode("utf-8", "replace")


@lru_cache(maxsize=1)
def byte_level_alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet.

    Source: Radford et al. 2019, openai/gpt-2, encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable}
    return table | {chr(256 + n): b for n, b in enumerate(rest)}


def _read_decoder(tokenizer: "tokenizers.Tokenizer", path: Path) -> tuple[bool, int]:
    """Whether tokens are byte-level, and the spaces dropped in front of all text."""
    native = tokenizer.decoder
    state: dict[str, Any] = json.loads(native.__getstate__()) if native else {}
    steps = state.get("decoders", [state]) if state else []
    byte_level, strip_left, known = False, 0, bool(steps)
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel":
            byte_level = True
        elif kind == "Metaspace":
            strip_left = int(step.get("prepend_scheme", "always") != "never")
        elif kind == "Strip":
            known &= step["content"] == " " and step["start"] <= 1 and not step["stop"]
            strip_left = step["start"]
        elif kind == "Replace":
            replaced = (step["pattern"].get("String"), step["content"])
            known &= replaced == ("\u2581", " ")
        else:
            known &= kind in ("ByteFallback", "Fuse")
    if not known:
        raise ValueError(
            f"[load_tokenizer] {path} has the decoder {json.dumps(state)[:200]}; known "
            "are ByteLevel, Metaspace and sentencepiece's Replace, ByteFallback, Fuse, "
            "Strip"
        )
    return byte_level, strip_left
