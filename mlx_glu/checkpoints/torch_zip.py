"""The directory of a zip archive as torch writes it: members stored, none compressed.

Python's zipfile would read archives in which readers disagree about what is inside.
Here sizes, offsets and counts that are given twice must be equal, and no two members
may share a byte. Format: PKWARE, APPNOTE.TXT, sections 4.3 and 4.4.
"""

import os
import struct
from io import FileIO
from itertools import pairwise
from typing import NamedTuple

#: Bytes of a directory; enough for 50,000 tensors.
_MAX_DIRECTORY = 4 << 20

_END, _LOCATOR, _END64 = b"PK\5\6", b"PK\6\7", b"PK\6\6"
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13


class Member(NamedTuple):
    """A stored file: its header starts at ``header``; nothing may pass ``limit``."""

    name: str
    header: int
    size: int
    limit: int


def read_directory(file: FileIO) -> dict[str, Member]:
    """The members of an archive by name.

    Raises:
        ValueError: damaged, compressed, encrypted, or a reader could be deceived.
    """
    try:
        start, size, count = _find_directory(file)
        if size > _MAX_DIRECTORY:
            raise ValueError(f"its directory has {size:,} bytes")
        entries = _entries(_read(file, start, size))
    except struct.error as error:
        raise ValueError("its zip directory is damaged") from error
    if len(entries) != count or len({name for name, _, _ in entries}) != count:
        raise ValueError("its zip directory lists a member twice or not at all")
    entries.sort(key=lambda entry: entry[1])
    members = {}
    # The last one ends where the directory starts.
    for (name, header, size), (_, limit, _) in pairwise([*entries, ("", start, 0)]):
        if header + 30 + len(name.encode()) + size > limit:
            raise ValueError(f"its member {name[:200]!r} overlaps the next one")
        members[name] = Member(name, header, size, limit)
    return members


def data_start(file: FileIO, member: Member) -> int:
    """Where the data of a member starts.

    Raises:
        ValueError: its own header is not what the directory says.
    """
    header = _read(file, member.header, 30)
    name = member.name.encode()
    signature, flags, method, length, extra = struct.unpack("<4s2xHH16xHH", header)
    start: int = member.header + 30 + length + extra
    if (
        (signature, method) != (b"PK\3\4", 0)
        or flags & _ENCRYPTED
        or _read(file, member.header + 30, length) != name
        or start + member.size > member.limit
    ):
        raise ValueError(f"its member {member.name[:200]!r} has a header that lies")
    return start


def _find_directory(file: FileIO) -> tuple[int, int, int]:
    """First byte, size and number of entries; the archive ends with them."""
    total = os.fstat(file.fileno()).st_size
    end = total - 22
    signature, *short, comment = struct.unpack("<4s4H2IH", _read(file, end, 22))
    if signature != _END or comment:
        raise ValueError("it does not end as a zip archive does; it may be incomplete")
    found = short
    if end >= 20 and _read(file, end - 20, 4) == _LOCATOR:
        _, end = struct.unpack("<IQ", _read(file, end - 16, 12))
        if end + 56 != total - 42:
            raise ValueError("its zip64 record is not where it should be")
        signature, *found = struct.unpack("<4s12xIIQQQQ", _read(file, end, 56))
        pairs = zip(short, found, (2**16 - 1,) * 4 + (2**32 - 1,) * 2, strict=True)
        if signature != _END64 or any(old not in (new, top) for old, new, top in pairs):
            raise ValueError("its zip and zip64 records contradict each other")
    disk, first_disk, here, count, size, start = map(int, found)
    if disk or first_disk or here != count or start + size != end:
        raise ValueError("its zip directory is not where it should be")
    return start, size, count


def _entries(directory: bytes) -> list[tuple[str, int, int]]:
    """Name, header and size of each member, in the directory's order."""
    entries, at = [], 0
    while at < len(directory):
        signature, flags, method, packed, size, length, extra, comment, disk, header = (
            struct.unpack_from("<4s4xHH8xIIHHHH6xI", directory, at)
        )
        at += 46
        name = directory[at : at + length].decode()
        if signature != b"PK\1\2" or not _is_plain(name):
            raise ValueError(f"its zip directory is damaged at {name[:200]!r}")
        if flags & _ENCRYPTED or method:
            raise ValueError(
                f"its member {name[:200]!r} is compressed or encrypted, which torch "
                "never does; take the original file"
            )
        fields = directory[at + length : at + length + extra]
        size, packed, header = _wide(fields, [size, packed, header])
        if size != packed or disk:
            raise ValueError(f"its member {name[:200]!r} has two sizes")
        entries.append((name, header, size))
        at += length + extra + comment
    if at != len(directory):
        raise ValueError("its zip directory is damaged at its end")
    return entries


def _wide(fields: bytes, values: list[int]) -> list[int]:
    """Replace the numbers that did not fit 32 bits by those of the zip64 field."""
    at = 0
    while at < len(fields):
        kind, length = struct.unpack_from("<HH", fields, at)
        at += 4
        if kind == 1:
            for i, value in enumerate(values):
                if value == 2**32 - 1:
                    (values[i],) = struct.unpack_from("<Q", fields[: at + length], at)
                    at, length = at + 8, length - 8
        at += length
    return values


def _is_plain(name: str) -> bool:
    """A relative path that stays below its start."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & {*parts}


def _read(file: FileIO, start: int, size: int) -> bytes:
    if start < 0:
        raise ValueError("it is too short for a zip archive")
    return os.pread(file.fileno(), size, start)
