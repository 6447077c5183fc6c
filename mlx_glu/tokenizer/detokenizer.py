"""Text of token ids, one id at a time, never half a character.

A token is a run of bytes and a character may span several tokens, so text comes
out of an incremental UTF-8 decoder. Bytes that form no character become U+FFFD.
"""

import codecs
from collections.abc import Callable, Sequence, Set


class StreamingDetokenizer:
    """Turn a stream of ids into text; work per token does not grow with the text.

    The joined segments equal ``tokenizer.decode(ids)``. sentencepiece marks each
    word's space in its token, and ``decode`` drops the one in front of all text.
    A continuation must keep it: after ``The capital``, the token ``_of`` streams
    ``" of"``. Given ``prompt_ids``, the text is what ``decode(prompt_ids + ids)``
    has beyond the prompt; special tokens in front do not count as text, and a
    character begun in the prompt is finished. (mlx-lm and Hugging Face's
    TextStreamer drop that space.)

    Args:
        token_bytes: the bytes of an id; none for an id outside the vocabulary.
        strip_left: spaces to drop in front of all text, 0 or 1.
        prompt_ids: ids that the new ones continue; none for text of its own, such
            as a chat reply.
        special_ids: ids that are not text.
        skip_special_tokens: give out nothing for the special ids.

    Example::

        detokenizer = tokenizer.detokenizer(prompt_ids)
        for token in tokens:
            detokenizer.add_token(token)
            print(detokenizer.last_segment, end="", flush=True)
        detokenizer.finalize()
        print(detokenizer.last_segment)
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        strip_left: int = 0,
        prompt_ids: Sequence[int] = (),
        special_ids: Set[int] = frozenset(),
        skip_special_tokens: bool = False,
    ) -> None:
        self._token_bytes = token_bytes
        self._skip = special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []
        self._unread: list[str] = []
        self._strip_left = strip_left
        for token in prompt_ids:
            if token not in special_ids and token_bytes(token):
                self._strip_left = 0
                break
        # Only the last bytes matter: a character has at most 4.
        tail = b"".join(token_bytes(token) for token in prompt_ids[-8:])
        self._decoder.decode(tail[-4:])

    def add_token(self, token: int) -> None:
        """Take one more id; text shows once its last character is complete."""
        if token not in self._skip:
            self._add(self._decoder.decode(self._token_bytes(token)))

    def finalize(self) -> None:
        """Give out an incomplete last character as U+FFFD."""
        self._add(self._decoder.decode(b"", final=True))

    @property
    def text(self) -> str:
        """All text so far."""
        self._parts[:] = ["".join(self._parts)]
        return self._parts[0]

    @property
    def last_segment(self) -> str:
        """The text that is new since this property was last read."""
        segment = "".join(self._unread)
        self._unread.clear()
        return segment

    def _add(self, text: str) -> None:
        if text and self._strip_left:
            text = text[1:] if text[0] == " " else text
            self._strip_left = 0
        if text:
            self._parts.append(text)
            self._unread.append(text)
