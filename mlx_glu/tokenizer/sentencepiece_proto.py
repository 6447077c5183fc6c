"""The wire format of a sentencepiece ``tokenizer.model``: what we read and write.

sentencepiece's Python API tells neither the type of a piece nor whether text gets
a space in front, and it cannot build a model from a list of pieces. The file is a
protobuf message of three fields, so we walk its bytes instead of depending on
protobuf.

Source: sentencepiece, src/sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterable, Sequence

# Piece types; GGUF's ``tokenizer.ggml.token_type`` uses the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# ModelProto: pieces = 1, trainer_spec = 2, normalizer_spec = 3, each a message.
_PIECES, _TRAINER, _NORMALIZER = 0x0A, 0x12, 0x1A
_BPE = 2

# A second normalizer_spec merges into the first one: add_dummy_prefix = false.
WITHOUT_PREFIX = bytes([_NORMALIZER, 2, 0x18, 0])


def read_model(data: bytes) -> tuple[dict[int, tuple[str, int]], bool]:
    """Find the special pieces of a model and its prefix rule.

    Args:
        data: the bytes of a ``tokenizer.model`` that sentencepiece accepts.

    Returns:
        ``{id: (piece, type)}`` of the unknown, control and user-defined pieces, and
        whether the model puts a space before text (``add_dummy_prefix``).

    Raises:
        IndexError: it is no such message after all.
    """
    special: dict[int, tuple[str, int]] = {}
    add_dummy_prefix, index, start = True, 0, 0
    while start < len(data):
        tag = data[start]
        size, start = _read_varint(data, start + 1)
        end = start + size
        if tag == _PIECES:
            # Fields come in order, so a type (3) is the last. Without one the
            # piece is normal; no score has these two bytes as its high half.
            if data[end - 2] == 0x18 and data[end - 1] in (2, 3, 4):
                length, text = _read_varint(data, start + 1)
                piece = data[text : text + length].decode("utf-8", "replace")
                special[index] = (piece, data[end - 1])
            index += 1
        elif tag == _NORMALIZER:
            for field, value in _read_scalars(data[start:end]):
                add_dummy_prefix = bool(value) if field == 3 else add_dummy_prefix
        start = end
    return special, add_dummy_prefix


def write_model(
    pieces: Sequence[tuple[str, float, int]],
    *,
    ids: dict[str, int],
    add_dummy_prefix: bool,
    byte_fallback: bool,
) -> bytes:
    """Encode a sentencepiece BPE model that does not change its input text.

    Args:
        pieces: (piece, score, type) in the order of their ids.
        ids: ``unk``, ``bos``, ``eos`` and ``pad``, -1 for none.
        add_dummy_prefix: put a space before text, as LLaMA-2 does.
        byte_fallback: encode unknown characters by the 256 byte pieces.

    Returns:
        The bytes of a ``tokenizer.model``.
    """
    out = bytearray()
    for piece, score, kind in pieces:
        body = _text(1, piece) + b"\x15" + struct.pack("<f", score) + _field(3, kind)
        out += _message(_PIECES, body)
    trainer = _field(3, _BPE) + _field(4, len(pieces)) + _field(35, byte_fallback)
    for number, role in enumerate(("unk", "bos", "eos", "pad"), start=40):
        trainer += _field(number, ids[role])
    # sentencepiece finds these pieces by name, not by id.
    for number, role in enumerate(("unk", "bos", "eos", "pad"), start=45):
        if ids[role] >= 0:
            trainer += _text(number, pieces[ids[role]][0])
    normalizer = _message(0x0A, b"identity") + _field(3, add_dummy_prefix)
    # remove_extra_whitespaces = false, escape_whitespaces = true
    normalizer += _field(4, 0) + _field(5, 1)
    return bytes(out + _message(_TRAINER, trainer) + _message(_NORMALIZER, normalizer))


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise IndexError("a number of over 64 bits")


def _read_scalars(data: bytes) -> Iterable[tuple[int, int]]:
    """Yield the (field number, value) of the varint fields of a message."""
    start = 0
    while start < len(data):
        tag, start = _read_varint(data, start)
        value, start = _read_varint(data, start)
        if tag & 7 == 2:
            start += value
        else:
            yield tag >> 3, value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64 bits
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _text(number: int, text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _message(tag: int, body: bytes) -> bytes:
    return bytes([tag]) + _varint(len(body)) + body
