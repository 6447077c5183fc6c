"""Write small GGUF files as llama.cpp does, to be read back by the package."""

import struct
from pathlib import Path

import numpy as np

from mlx_glu.checkpoints.gguf_blocks import FORMATS, UNREAD

_TYPES = {kind.name: code for code, kind in FORMATS.items()}
_TYPES |= {name: code for code, name in UNREAD.items()}


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    assert isinstance(value, list)
    if isinstance(value[0], str):
        body = b"".join(map(_string, value))
        return struct.pack("<IIQ", 9, 8, len(value)) + body
    code, letter = (6, "f") if isinstance(value[0], float) else (5, "i")
    body = struct.pack(f"<{len(value)}{letter}", *value)
    return struct.pack("<IIQ", 9, code, len(value)) + body


def encode(array: np.ndarray, kind: str) -> bytes:
    """The blocks of a float32 array. Groups of 32 run along the last axis."""
    if array.dtype == np.uint8:
        return array.tobytes()
    if kind == "F32":
        return array.astype(np.float32).tobytes()
    if kind == "F16":
        return array.astype(np.float16).tobytes()
    if kind == "BF16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    groups = array.astype(np.float32).reshape(-1, 32)
    if kind == "Q8_0":
        scale = (np.abs(groups).max(1) / 127).astype(np.float16)
        q = np.rint(groups / np.maximum(scale, 1e-8)[:, None]).astype(np.int8)
        parts = [scale[:, None].view(np.uint8), q.view(np.uint8)]
        return np.concatenate(parts, axis=1).tobytes()
    low, high = groups.min(1), groups.max(1)
    if kind == "Q4_0":
        low = -8 * np.abs(groups).max(1) / 7
        high = low + 15 * np.abs(groups).max(1) / 7
    scale = np.maximum((high - low) / 15, 1e-8).astype(np.float16)
    q = np.rint((groups - low[:, None]) / scale[:, None]).clip(0, 15).astype(np.uint8)
    parts = [scale[:, None].view(np.uint8)]
    if kind == "Q4_1":
        parts.append(low.astype(np.float16)[:, None].view(np.uint8))
    parts.append(q[:, :16] | q[:, 16:] << 4)
    return np.concatenate(parts, axis=1).tobytes()


def write_gguf(
    path: Path,
    metadata: dict[str, object],
    tensors: dict[str, tuple[np.ndarray, str]],
) -> Path:
    """Write ``tensors``, name to (float32 array, type), after ``metadata``.

    A uint8 array [rows, bytes] holds blocks as they are.
    """
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    data = b""
    for name, (array, kind) in tensors.items():
        dims = array.shape[::-1]
        if array.dtype == np.uint8:
            block = FORMATS[_TYPES[kind]]
            dims = (dims[0] // block.nbytes * block.block, *dims[1:])
        head += _string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", _TYPES[kind], len(data))
        data += encode(array, "F32" if _TYPES[kind] in UNREAD else kind)
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path
