"""Finds the source line of an address in a kernel's library, out of its DWARF."""

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Lines of the simulator's own texts say nothing: the caller's line is shown.
_SHIM = "metal_sim/include/"
_LAUNCHER = "launcher"


def locate(library: Path, offsets: Sequence[int]) -> list[str]:
    """Name the source lines of some addresses.

    Args:
        library: compiled with ``-g1``.
        offsets: addresses, counted from the start of the library.

    Returns:
        "file:line" for each, "" where it is not known.
    """
    if not offsets:
        return []
    table = _line_table(library)
    return [table.where(offset) for offset in offsets]


@functools.lru_cache(256)
def code_range(address: int) -> tuple[int, int]:
    """First address, and last + 1, of the loaded library that an address lies in."""
    ranges: dict[str, tuple[int, int]] = {}
    found = ""
    with open("/proc/self/maps") as maps:
        for row in maps:
            span, *_, name = row.rstrip().split(maxsplit=5)
            low, high = (int(part, 16) for part in span.split("-"))
            old_low, old_high = ranges.get(name, (low, high))
            ranges[name] = min(low, old_low), max(high, old_high)
            if low <= address < high:
                found = name
    return ranges[found]


class _LineTable:
    """Rows of a library's line table, and the inlined calls around them."""

    def __init__(self, library: Path) -> None:
        self.rows: list[tuple[int, str, int]] = []  # first address, file, line
        self.calls: list[tuple[int, int, str, int]] = []  # low, high, call's place
        # Here, as it is needed only where something was found.
        from elftools.elf.elffile import ELFFile

        with open(library, "rb") as file:
            elf = ELFFile(file)
            if not elf.has_dwarf_info():
                return
            dwarf = elf.get_dwarf_info()
            for unit in dwarf.iter_CUs():
                program = dwarf.line_program_for_CU(unit)
                if program is None:
                    continue
                files = _file_names(program)
                self.rows += _rows(program, files)
                self.calls += _inlined_calls(dwarf, unit, files)
        self.rows.sort(key=lambda row: row[0])
        # Innermost last: the shortest ranges.
        self.calls.sort(key=lambda call: call[1] - call[0])

    def where(self, offset: int) -> str:
        at = bisect_right(self.rows, offset, key=lambda row: row[0]) - 1
        # Code that stands for several lines has number 0: the line before is near.
        while at > 0 and self.rows[at][1] and not self.rows[at][2]:
            at -= 1
        if at < 0:
            return ""
        _, file, line = self.rows[at]
        if _is_ours(file) or not line:
            callers = (
                (caller, caller_line)
                for low, high, caller, caller_line in self.calls
                if low <= offset < high and caller_line and not _is_ours(caller)
            )
            file, line = next(callers, ("", 0))
        return f"{Path(file).name}:{line}" if line else ""


def _is_ours(file: str) -> bool:
    return _SHIM in file or Path(file).name == _LAUNCHER


@functools.lru_cache(64)
def _line_table(library: Path) -> _LineTable:
    return _LineTable(library)


def _file_names(program: Any) -> list[str]:
    """Paths by the number that rows use."""
    header = program.header
    folders = [_text(name) for name in header["include_directory"]]
    names = []
    for entry in header["file_entry"]:
        folder = folders[entry.dir_index] if entry.dir_index < len(folders) else ""
        names.append(f"{folder}/{_text(entry.name)}")
    # Before DWARF 5 numbers began at 1.
    return names if header["version"] >= 5 else ["", *names]


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _rows(program: Any, files: list[str]) -> Iterator[tuple[int, str, int]]:
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if state.end_sequence:
            yield state.address, "", 0
        elif state.file < len(files):
            yield state.address, files[state.file], state.line


def _inlined_calls(
    dwarf: Any, unit: Any, files: list[str]
) -> Iterator[tuple[int, int, str, int]]:
    for entry in unit.iter_DIEs():
        if entry.tag != "DW_TAG_inlined_subroutine":
            continue
        attributes = entry.attributes
        if "DW_AT_call_line" not in attributes:
            continue
        number = attributes["DW_AT_call_file"].value
        file = files[number] if number < len(files) else ""
        line = attributes["DW_AT_call_line"].value
        for low, high in _address_ranges(dwarf, unit, attributes):
            yield low, high, file, line


def _address_ranges(dwarf: Any, unit: Any, attributes: Any) -> list[tuple[int, int]]:
    if "DW_AT_low_pc" in attributes:
        low = attributes["DW_AT_low_pc"].value
        high = attributes["DW_AT_high_pc"]
        is_length = high.form.startswith("DW_FORM_data")
        return [(low, low + high.value if is_length else high.value)]
    if "DW_AT_ranges" not in attributes:
        return []
    lists = dwarf.range_lists()
    ranges = lists.get_range_list_at_offset(attributes["DW_AT_ranges"].value, unit)
    base = unit.get_top_DIE().attributes["DW_AT_low_pc"].value
    found = []
    for entry in ranges:
        if not hasattr(entry, "begin_offset"):
            base = entry.base_address
            continue
        start = 0 if getattr(entry, "is_absolute", False) else base
        found.append((start + entry.begin_offset, start + entry.end_offset))
    return found
