"""safetensors: damage is refused in one line, and what is written reads back."""

import json
import struct
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_glu.checkpoints.checkpoint import Folder
from mlx_glu.checkpoints.safetensors import DTYPES, SafetensorsFile
from mlx_glu.conversion.writer import Writer, shards
from mlx_glu.tensor_info import TensorInfo

ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_file(path, header, data=b"12345678"):
    """A file with this header: bytes, or an object that becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refusal(path):
    """The message of the error, after checking that it is one quick line."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"\A\[safetensors\] ") as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert time.perf_counter() - start < 1
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600 + len(str(path))
    return message


HEADER = json.dumps({"x": ROW}).encode()
BROKEN = {
    "empty": b"",
    "one byte": b"\x01",
    "seven bytes": b"\x01" * 7,
    "length alone": struct.pack("<Q", 2),
    "length 0": struct.pack("<Q", 0),
    "length of the whole file": struct.pack("<Q", 8 + len(HEADER)) + HEADER,
    "length 2**64 - 1": b"\xff" * 8 + HEADER,
    "cut in the header": struct.pack("<Q", len(HEADER)) + HEADER[:-5],
    "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "not UTF-8": struct.pack("<Q", 4) + b'"\xff" ',
    "UTF-16": struct.pack("<Q", 6) + '"a"'.encode("utf-16-le"),
    "not JSON": struct.pack("<Q", 4) + b"{,} ",
    "a list": struct.pack("<Q", 2) + b"[]",
    "null": struct.pack("<Q", 4) + b"null",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_no_header(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    refusal(tmp_path / "a.safetensors")


def test_git_lfs_pointer_is_recognised(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "a.safetensors").write_text(pointer)
    assert "git lfs pull" in refusal(tmp_path / "a.safetensors")


HUGE = 2**62
BAD_ROWS = {
    "null row": None,
    "list row": [1, 2],
    "no dtype": {"shape": [2], "data_offsets": [0, 8]},
    "no shape": {"dtype": "F32", "data_offsets": [0, 8]},
    "no offsets": {"dtype": "F32", "shape": [2]},
    "one offset": ROW | {"data_offsets": [0]},
    "three offsets": ROW | {"data_offsets": [0, 4, 8]},
    "null offsets": ROW | {"data_offsets": None},
    "unknown dtype": ROW | {"dtype": "Q4_K"},
    "8-bit float": ROW | {"dtype": "F8_E4M3", "data_offsets": [0, 2]},
    "float64, which mx.load lacks": ROW | {"dtype": "F64", "shape": [1]},
    "dtype is a list": ROW | {"dtype": ["F32"]},
    "negative size": ROW | {"shape": [-2]},
    "two negative sizes": ROW | {"shape": [-2, -1]},
    "boolean size": ROW | {"shape": [True, 2]},
    "float size": ROW | {"shape": [2.0]},
    "string size": ROW | {"shape": ["2"]},
    "shape is a string": ROW | {"shape": "2"},
    "shape is a number": ROW | {"shape": 2},
    "shape is an object": ROW | {"shape": {}},
    "nested shape": ROW | {"shape": [[2]]},
    "negative offset": ROW | {"data_offsets": [-8, 0]},
    "boolean offset": ROW | {"data_offsets": [False, 8]},
    "float offset": ROW | {"data_offsets": [0, 8.0]},
    "string offset": ROW | {"data_offsets": ["0", "8"]},
    "offsets reversed": ROW | {"data_offsets": [8, 0]},
    "beyond the data": ROW | {"data_offsets": [8, 16]},
    "far beyond the data": ROW | {"data_offsets": [HUGE, HUGE + 8]},
    "wrong size": ROW | {"shape": [3]},
    "product is 0 modulo 2**64": ROW | {"shape": [2**31] * 4},
    "empty but too long": ROW | {"shape": [0, 2**31], "data_offsets": [0, 0]},
    "infinite": ROW | {"shape": [float("inf")]},
    "many axes": ROW | {"shape": [2**31 - 1] * 100_000},
    "huge number": ROW | {"shape": [10**4000]},
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row_names_the_tensor(row, tmp_path):
    path = write_file(tmp_path / "a.safetensors", {"layer.weight": row})
    assert "'layer.weight'" in refusal(path)


def test_truncated_data_says_so(tmp_path):
    path = write_file(tmp_path / "a.safetensors", {"x": ROW}, b"1234567")
    assert "download is incomplete" in refusal(path)


def placed(*spans):
    return {
        name: {"dtype": "U8", "shape": [last - first], "data_offsets": [first, last]}
        for name, first, last in spans
    }


OVERLAPS = {
    "same bytes": (placed(("a", 0, 8), ("b", 0, 8)), "'b'"),
    "overlap": (placed(("a", 0, 5), ("b", 4, 8)), "'b'"),
    "gap at the start": (placed(("a", 1, 8)), "'a'"),
    "gap": (placed(("a", 0, 3), ("b", 4, 8)), "'b'"),
    "left over": (placed(("a", 0, 7)), "1 bytes after"),
    "no tensors, but data": ({}, "8 bytes after"),
}


@pytest.mark.parametrize(("header", "named"), OVERLAPS.values(), ids=OVERLAPS)
def test_every_byte_belongs_to_one_tensor(header, named, tmp_path):
    """As the format's specification wants it, against hidden or shared data."""
    assert named in refusal(write_file(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize(
    "text",
    [
        b'{"x":%s,"x":%s}' % (json.dumps(ROW).encode(), json.dumps(ROW).encode()),
        HEADER.replace(b'"shape"', b'"dtype": "U8", "shape"'),
    ],
)
def test_duplicate_keys(text, tmp_path):
    assert "occurs twice" in refusal(write_file(tmp_path / "a.safetensors", text))


def test_order_and_metadata_do_not_matter(tmp_path):
    header = {"__metadata__": {"a": "b"}} | placed(
        ("b", 3, 8), ("e", 3, 3), ("a", 0, 3)
    )
    found = SafetensorsFile(write_file(tmp_path / "a.safetensors", header)).tensors
    assert found == {
        "b": TensorInfo(mx.uint8, (5,)),
        "e": TensorInfo(mx.uint8, (0,)),
        "a": TensorInfo(mx.uint8, (3,)),
    }


ARRAYS = {
    "float32": mx.array(np.linspace(-3, 3, 30).reshape(5, 3, 2), mx.float32),
    "float16": mx.array([[0.1, -2.5, 6e4]], mx.float16),
    "bfloat16": mx.array([0.1, -2.5, 1e38, mx.nan, -mx.inf], mx.bfloat16),
    "uint32": mx.array([[0, 1, 2**32 - 1]], mx.uint32),
    "uint8": mx.array([3, 255, 0], mx.uint8),
    "scalar": mx.array(1.5),
    "none": mx.zeros((0,), mx.bfloat16),
    "none.of.many": mx.zeros((3, 0, 5)),
    "transposed": mx.arange(12, dtype=mx.float32).reshape(3, 4).T,
    "strided": mx.arange(12, dtype=mx.int32)[::3],
    "broadcast": mx.broadcast_to(mx.array([1, 2], mx.int16), (3, 2)),
}


def written(path, arrays):
    infos = {name: TensorInfo(a.dtype, a.shape) for name, a in arrays.items()}
    with Writer(path, infos) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return infos


def parse(path):
    """The file by the format's description alone: name to raw bytes and row."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert header.pop("__metadata__") == {"format": "mlx"}
    assert (8 + length) % 8 == 0
    return {
        name: (row, data[slice(*row["data_offsets"])]) for name, row in header.items()
    }


def test_written_files_read_back(tmp_path):
    """By mx.load, by this package and by a plain parse, in the announced order."""
    path = tmp_path / "a.safetensors"
    infos = written(path, ARRAYS)
    assert SafetensorsFile(path).tensors == infos
    theirs, plain = mx.load(str(path)), parse(path)
    assert list(plain) == list(ARRAYS)
    end = 0
    for name, array in ARRAYS.items():
        row, data = plain[name]
        assert theirs[name].dtype == array.dtype == DTYPES[row["dtype"]]
        assert theirs[name].shape == array.shape == tuple(row["shape"])
        raw = bytes(memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8)))
        assert data == raw == bytes(memoryview(theirs[name].reshape(-1).view(mx.uint8)))
        assert row["data_offsets"] == [end, end + array.nbytes]
        end += array.nbytes


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype(dtype, tmp_path):
    array = mx.array([0, 1, 0, 1, 1]).astype(dtype)
    written(tmp_path / "a.safetensors", {"x": array})
    assert SafetensorsFile(tmp_path / "a.safetensors").tensors["x"] == (dtype, (5,))
    theirs = mx.load(str(tmp_path / "a.safetensors"))["x"]
    assert theirs.dtype == dtype
    assert mx.array_equal(theirs, array)


def test_no_tensors(tmp_path):
    written(tmp_path / "a.safetensors", {})
    assert SafetensorsFile(tmp_path / "a.safetensors").tensors == {}


def test_files_of_mlx_are_read(tmp_path):
    """Its headers are not padded, and its tensors are in any order."""
    arrays = {name: a for name, a in ARRAYS.items() if a.size}
    mx.save_safetensors(str(tmp_path / "a.safetensors"), arrays)
    infos = SafetensorsFile(tmp_path / "a.safetensors").tensors
    assert infos == {n: TensorInfo(a.dtype, a.shape) for n, a in arrays.items()}


@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    limit=st.integers(1, 60),
)
def test_shards(sizes, limit):
    """In order, none lost, none over the limit but a tensor that alone is."""
    tensors = [(f"t{i}", TensorInfo(mx.uint8, (n,))) for i, n in enumerate(sizes)]
    files = shards(tensors, limit)
    assert [item for file in files for item in file.items()] == tensors
    totals = [sum(info.nbytes for info in file.values()) for file in files]
    for i, (file, total) in enumerate(zip(files, totals, strict=True)):
        assert total <= limit or len([1 for t in file.values() if t.nbytes]) == 1
        if i:
            first = next(iter(file.values()))
            assert totals[i - 1] + first.nbytes > limit
    assert all(files) or not tensors


def test_nbytes():
    assert TensorInfo(mx.bfloat16, (3, 5)).nbytes == 30
    assert TensorInfo(mx.float32, ()).nbytes == 4
    assert TensorInfo(mx.float32, (0, 7)).nbytes == 0


with tempfile.TemporaryDirectory() as _folder:
    _whole = Path(_folder) / "a.safetensors"
    written(_whole, {k: v for k, v in ARRAYS.items() if k != "broadcast"})
    CONTENT = _whole.read_bytes()
LENGTH = 8 + struct.unpack("<Q", CONTENT[:8])[0]


@settings(max_examples=400, deadline=None)
@given(
    flips=st.lists(
        st.tuples(
            st.one_of(st.integers(0, LENGTH - 1), st.integers(0, len(CONTENT) - 1)),
            st.one_of(st.sampled_from(b'0123456789[]{},:"-.eE\\'), st.integers(0, 255)),
        ),
        max_size=4,
    ),
    end=st.one_of(st.just(len(CONTENT)), st.integers(0, len(CONTENT))),
)
def test_damage_is_refused_or_harmless(flips, end):
    """Any bytes changed, the file cut anywhere: ValueError, or what is there."""
    content = bytearray(CONTENT)
    for position, byte in flips:
        content[position] = byte
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(content[:end])
        refused = None
        try:
            checkpoint = Folder(folder)
            arrays = {name: checkpoint.load(name) for name in checkpoint.tensors}
            mx.eval(arrays)
        except ValueError as error:
            refused = str(error)
    if refused is not None:
        assert str(folder) in refused
        assert "\n" not in refused
        return
    assert end == len(CONTENT)
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == checkpoint.tensors[name]
