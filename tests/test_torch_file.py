"""Files of torch.save: equal to what torch reads, and nothing in them is run."""

import contextlib
import gc
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import config_of, token_ids, weights_of, write_checkpoint
from torch_writer import (
    EMPTY,
    KINDS,
    PROTO,
    STOP,
    archive,
    call,
    dict_of,
    name,
    number,
    save,
    storage,
    tensor,
    text,
    tuple_of,
)

from mlx_glu import convert, load_model
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.checkpoints.pickled import MAX_OPCODES, MAX_PICKLE
from mlx_glu.checkpoints.torch_file import TorchFile

DATA = Path(__file__).parent / "data"
CONFIG = config_of("llama", num_hidden_layers=1)
IDS = mx.array(token_ids()[:, :5])

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
#: What the files in data/ hold, written by torch 2.13; "a", "a.t" and "a.row" share a
#: storage, and "p" is a Parameter.
GOLDEN = {
    "a": BASE,
    "a.t": BASE.T,
    "a.row": BASE[1:3, 2:],
    "p": np.ones((2, 3), np.float32),
    "h": np.array([1.5, 2], np.float16),
    "i": np.array(7),
    "d": np.array([0.1], np.float32),
    "b": np.array([True, False]),
    "z": np.zeros((0, 3), np.float32),
}


def read(path):
    file = TorchFile(path)
    arrays = {key: file.load(key) for key in file.tensors}
    for key, array in arrays.items():
        assert (array.dtype, array.shape) == file.tensors[key]
    return arrays


@pytest.mark.parametrize("file", ["torch_zip.bin", "torch_legacy.bin"])
def test_files_of_torch(file):
    arrays = read(DATA / file)
    assert list(arrays) == list(GOLDEN)
    assert arrays["p"].dtype == mx.bfloat16
    for key, array in arrays.items():
        found = np.array(array.astype(mx.float32) if key == "p" else array)
        assert np.array_equal(found, GOLDEN[key]), key
        assert found.dtype == GOLDEN[key].dtype
    (note,) = TorchFile(DATA / file).notes
    assert "'d'" in note
    assert "float64" in note


@pytest.mark.parametrize("dtype", KINDS)
def test_every_dtype(dtype, tmp_path):
    array = np.array([[0, 1, 2], [3, 1, 0]]).astype(dtype)
    found = read(save(tmp_path / "pytorch_model.bin", {"x": array}))["x"]
    wanted = array.astype(np.float32) if dtype == "float64" else array
    assert np.array_equal(np.array(found), wanted)
    assert np.array(found).dtype == wanted.dtype


VIEWS = {
    "all": ((4, 6), (6, 1), 0),
    "transposed": ((6, 4), (1, 6), 0),
    "columns": ((4, 2), (6, 1), 3),
    "every other": ((2, 3), (12, 2), 1),
    "one element": ((), (), 23),
    "overlapping": ((3, 4), (4, 2), 0),
    "a row again": ((2, 6), (0, 1), 18),
    "one long step": ((1, 6), (10**12, 1), 0),
    "none": ((0, 5), (5, 1), 24),
    "three axes": ((2, 2, 3), (12, 3, 1), 0),
    "three axes turned": ((3, 2, 2), (1, 12, 3), 0),
}


@pytest.mark.parametrize(("shape", "strides", "first"), VIEWS.values(), ids=VIEWS)
def test_views(shape, strides, first, tmp_path):
    pickled = dict_of(x=tensor(storage("Float", "0", 24), shape, strides, first))
    path = tmp_path / "a.bin"
    path.write_bytes(archive(pickled, {"0": BASE.tobytes()}))
    steps = [4 * step for step in strides]
    wanted = np.lib.stride_tricks.as_strided(BASE.reshape(-1)[first:], shape, steps)
    assert np.array_equal(np.array(read(path)["x"]), wanted)


# Folders


def sharded(folder, config, weights):
    """Two .bin files with an index, as Hugging Face wrote them."""
    folder.mkdir()
    weight_map = {}
    for part in (0, 1):
        own = {key: weights[key] for key in list(weights)[part::2]}
        file = save(folder / f"pytorch_model-0000{part + 1}-of-00002.bin", own)
        weight_map |= dict.fromkeys(own, file.name)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_shards_is_the_model(tmp_path):
    weights = weights_of(CONFIG)
    expected = load_model(write_checkpoint(tmp_path / "st", CONFIG, weights))(IDS)
    folder = sharded(tmp_path / "bin", CONFIG, weights)
    assert np.array_equal(load_model(folder)(IDS), expected)
    convert(folder, tmp_path / "mlx")
    assert np.array_equal(load_model(tmp_path / "mlx")(IDS), expected)


def test_one_file(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", CONFIG)
    expected = load_model(folder)(IDS)
    (folder / "model.safetensors").unlink()
    save(folder / "pytorch_model.bin", weights_of(CONFIG))
    assert np.array_equal(load_model(folder)(IDS), expected)


def test_safetensors_come_first(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", CONFIG)
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert any("not read" in note for note in open_checkpoint(folder).notes)
    load_model(folder)


def test_the_index_stays_inside(tmp_path):
    folder = sharded(tmp_path / "bin", CONFIG, weights_of(CONFIG))
    index = folder / "pytorch_model.bin.index.json"
    for file in ("../x.bin", "/etc/passwd", "model.safetensors", 7):
        index.write_text(json.dumps({"weight_map": {"x": file}}))
        with pytest.raises(ValueError, match=r"a \.bin file inside the folder"):
            open_checkpoint(folder)


# Refusals


def refusal(path, content=None):
    """The message, after checking that it is one quick line with the path."""
    if content is not None:
        path.write_bytes(content)
    gc.freeze()  # what other tests left on the heap takes the collector seconds
    start = time.process_time()
    with pytest.raises(ValueError, match=r"\A\[torch\] ") as caught:
        TorchFile(path)
    assert time.process_time() - start < 1
    gc.unfreeze()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600 + len(str(path))
    return message


X = tensor(storage("Float", "0", 2), (2,))
TWO = {"0": bytes(8)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


class Evil:
    """Unpickled by pickle, it would write the file that the tests look for."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


EVIL = {
    "os.mkdir": lambda canary: (os.mkdir, (canary,)),
    "os.system": lambda canary: (os.system, (f"mkdir {canary}",)),
    "eval": lambda canary: (eval, (f"__import__('os').mkdir({canary!r})",)),
    "exec": lambda canary: (exec, (f"import os; os.mkdir({canary!r})",)),
    "getattr": lambda canary: (getattr, (Evil(os.mkdir, (canary,)), "x")),
    "a chain": lambda canary: (list, ([Evil(os.mkdir, (canary,))],)),
    "state": lambda canary: (dict, (), {"a": Evil(os.mkdir, (canary,))}),
    "items": lambda canary: (
        *(dict, (), None, None),
        iter([("a", Evil(os.mkdir, (canary,)))]),
    ),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("make", EVIL.values(), ids=EVIL)
def test_nothing_is_run(make, protocol, path, tmp_path):
    """The pickles work: pickle.loads falls for them."""
    canary = tmp_path / "canary"
    data = pickle.dumps({"x": Evil(*make(str(canary)))}, protocol)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", data)
    for content in (out.getvalue(), LEGACY_HEAD + data):
        refusal(path, content)
        assert not canary.exists()
    with contextlib.suppress(TypeError, AttributeError):
        pickle.loads(data)
    assert canary.exists()


def test_no_module_is_imported(path):
    refusal(path, archive(name("this", "x")))
    assert "this" not in sys.modules


FORBIDDEN = {
    "INST": b"(S'x'\nios\nsystem\n",
    "OBJ": b"(" + name("os", "system") + text("x") + b"o",
    "NEWOBJ": name("os", "system") + b")\x81",
    "NEWOBJ_EX": name("os", "system") + b")}\x92",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pxyz\n",
    "STRING": b"S'x'\n",
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "BINBYTES8": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "BYTEARRAY8": b"\x96" + b"\xff" * 7 + b"\x7f",
    "NEXT_BUFFER": b"\x97",
    "DUP": b"}2",
    "POP": b"}}0",
    "EMPTY_SET": b"\x8f",
}


@pytest.mark.parametrize("pickled", FORBIDDEN.values(), ids=FORBIDDEN)
def test_opcodes_that_torch_does_not_write(pickled, path):
    message = refusal(path, archive(pickled))
    assert "nothing of it was run" in message


NAMES = [
    ("torch._utils", "_rebuild_from_type_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch", "load"),
    ("torch", "ComplexFloatStorage"),
    ("torch.storage", "_load_from_bytes"),
    ("collections", "OrderedDict.__class__"),
    ("collections.abc", "OrderedDict"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("os", "system"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("\0", "\x1b[2J"),
    ("x" * 400, "y"),
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: ascii(names[1]))
def test_other_names_are_refused_by_name(names, path):
    stacked = text(names[0]) + text(names[1]) + b"\x93"
    for pickled in (call(name(*names), text("x")), stacked):
        message = refusal(path, archive(dict_of(x=pickled), TWO))
        assert repr(".".join(names)[:200]) in message
        assert "save it as safetensors with torch" in message


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
WRONG = {
    "no dict": X,
    "a list": b"]",
    "nothing": b"}",
    "nested": dict_of(model=dict_of(x=X)),
    "a number": dict_of(x=X, step=number(3)),
    "a name": dict_of(x=name("torch", "FloatStorage")),
    "a storage": dict_of(x=storage("Float", "0", 2)),
    "no arguments": dict_of(x=call(REBUILD)),
    "three arguments": dict_of(x=call(REBUILD, EMPTY, EMPTY, EMPTY)),
    "no storage": dict_of(x=call(REBUILD, *[number(0)] * 6)),
    "calls in calls": dict_of(x=call(REBUILD, *[call(REBUILD)] * 6)),
    "conjugated": dict_of(x=X[:-2] + dict_of(conj=b"\x88") + b"tR"),
    "parameter of nothing": dict_of(x=call(name("torch._utils", "_rebuild_parameter"))),
    "key is a number": b"}" + number(1) + X + b"s",
    "key is a tuple": b"}" + tuple_of(text("x")) + X + b"s",
    "key is unhashable": b"}}" + X + b"s",
    "odd items": b"}(" + text("x") + b"u",
    "name too long": dict_of(**{"x" * 501: X}),
    "OrderedDict of items": call(name("collections", "OrderedDict"), b"]"),
    "called text": text("collections.OrderedDict") + b")R",
    "BUILD of a tensor": dict_of(x=X + b"}b"),
    "BUILD by a tuple": dict_of(x=X) + b"}}\x86b",
    "empty stack": b"0" * 0,
    "two values": b"}}",
    "append to a dict": b"}}a",
    "set in a list": b"]" + text("x") + X + b"s",
    "memo is empty": b"h\0",
    "mark is missing": b"t",
    "text is cut": b"X\xff\xff\xff\xff",
    "text is no UTF-8": b"X\1\0\0\0\xff",
    "endless name": b"c" + b"x" * 10_000,
}


@pytest.mark.parametrize("pickled", WRONG.values(), ids=WRONG)
def test_what_is_no_state_dict(pickled, path):
    refusal(path, archive(pickled, TWO))


LIES = {
    "beyond the storage": ((3,), (1,), 0),
    "offset beyond": ((1,), (1,), 2),
    "stride beyond": ((2,), (2,), 0),
    "expanded": ((2**20, 2**20), (0, 0), 0),
    "negative size": ((-1,), (1,), 0),
    "negative stride": ((2,), (-1,), 1),
    "negative offset": ((1,), (1,), -1),
    "more sizes": ((1, 1), (1,), 0),
    "huge size": ((2**40,), (0,), 0),
    "huge stride": ((2,), (2**63,), 0),
    "huge product": ((2**30,) * 4, (0,) * 4, 0),
    "many axes": ((1,) * 33, (1,) * 33, 0),
    "huge empty": ((0, 2**40), (1, 1), 0),
}


@pytest.mark.parametrize("view", LIES.values(), ids=LIES)
def test_numbers_that_lie(view, path):
    pickled = dict_of(x=tensor(storage("Float", "0", 2), *view))
    assert "'x'" in refusal(path, archive(pickled, TWO))


STORAGES = {
    "missing": ({}, storage("Float", "0", 2)),
    "shorter": ({"0": bytes(4)}, storage("Float", "0", 2)),
    "longer": ({"0": bytes(12)}, storage("Float", "0", 2)),
    "other size of element": (TWO, storage("Double", "0", 2)),
    "key leads away": (TWO, storage("Float", "../data.pkl", 2)),
    "key is long": (TWO, storage("Float", "9" * 100_000, 2)),
    "view of a storage": (TWO, storage("Float", "0", 2, tuple_of(text("v")))),
    "kind is text": (TWO, tuple_of(text("storage"), *[text("x")] * 4) + b"Q"),
    "four parts": (TWO, tuple_of(*[text("storage")] * 4) + b"Q"),
    "not a tuple": (TWO, text("storage") + b"Q"),
    "size is a float": (
        TWO,
        tuple_of(
            *(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu")),
            b"G" + struct.pack(">d", 2.0),
        )
        + b"Q",
    ),
}


@pytest.mark.parametrize(("data", "stored"), STORAGES.values(), ids=STORAGES)
def test_storages_that_lie(data, stored, path):
    refusal(path, archive(dict_of(x=tensor(stored, (2,))), data))


# Size and time


BOMBS = {
    "dicts": b"}" * MAX_OPCODES,
    "marks": b"(" * MAX_OPCODES,
    "nested tuples": b")" + b"\x85" * MAX_OPCODES,
    "nested calls": b")" + b"Q" * MAX_OPCODES,
    "memo": b"}" + b"r\xff\xff\xff\x7f" * 300_000,
    "doubling": b")" + b"q\0h\0\x86" * 100,
    "in itself": b"]q\0h\0a" + dict_of(x=b"h\0"),
    "frames": b"\x95" + b"\xff" * 8 + b"}",
    "no end": b"N" * (MAX_PICKLE - 4),
    "long pickle": b"N" * (MAX_PICKLE + 1),
}


@pytest.mark.parametrize("pickled", BOMBS.values(), ids=BOMBS)
def test_bombs(pickled, path):
    refusal(path, archive(pickled))


def test_a_zip_bomb(path):
    content = archive(dict_of(x=X), {"0": bytes(1 << 24)}, compression=8)
    assert len(content) < 1 << 16
    assert "compressed" in refusal(path, content)


def test_a_compressed_pickle(path):
    refusal(path, archive(dict_of(x=X), TWO, compression=8))


WHOLE = archive(dict_of(x=X), TWO)


def patched(at, layout, value, content=WHOLE):
    """The archive with one number changed; ``at`` counts from a signature."""
    signature, offset = at
    content, position = bytearray(content), content.rindex(signature) + offset
    struct.pack_into(layout, content, position, value)
    return bytes(content)


CENTRAL, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"
ZIP_LIES = {
    "encrypted": ((CENTRAL, 8), "<H", 1),
    "method": ((CENTRAL, 10), "<H", 8),
    "two sizes": ((CENTRAL, 20), "<I", 1),
    "offset of a member": ((CENTRAL, 42), "<I", 0),
    "offset beyond": ((CENTRAL, 42), "<I", 2**31),
    "long name": ((CENTRAL, 28), "<H", 2**16 - 1),
    "on another disk": ((CENTRAL, 34), "<H", 1),
    "zip64 size without a field": ((CENTRAL, 24), "<I", 2**32 - 1),
    "count": ((END, 10), "<H", 1),
    "count of all": ((END, 8), "<H", 1),
    "size of the directory": ((END, 12), "<I", 10),
    "huge directory": ((END, 12), "<I", 2**31),
    "start of the directory": ((END, 16), "<I", 0),
    "comment": ((END, 20), "<H", 1),
    "disk": ((END, 4), "<H", 1),
}


@pytest.mark.parametrize("change", ZIP_LIES.values(), ids=ZIP_LIES)
def test_archives_that_lie(change, path):
    refusal(path, patched(*change))


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
@pytest.mark.parametrize(("offset", "value"), [(8, 8), (6, 1), (26, 0), (28, 60000)])
def test_members_whose_own_header_lies(offset, value, member, path):
    start = WHOLE.index(b"archive/" + member.encode()) - 30
    content = bytearray(WHOLE)
    assert content[start : start + 4] == LOCAL
    struct.pack_into("<H", content, start + offset, value)
    assert "header that lies" in refusal(path, bytes(content))


def test_zip64_that_contradicts(path):
    content = (DATA / "torch_zip.bin").read_bytes()
    for offset in (24, 32, 40, 48):
        lie = patched((b"PK\6\6", offset), "<Q", 2**40, content)
        assert "contradict" in refusal(path, lie)
    assert "zip64" in refusal(path, patched((b"PK\6\7", 8), "<Q", 0, content))


def test_members_twice_or_elsewhere(path):
    twice = io.BytesIO(WHOLE)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(twice, "a") as file,
    ):
        file.writestr("archive/data/0", bytes(8))
    assert "twice" in refusal(path, twice.getvalue())
    for extra in ("../x", "/etc/passwd", "archive/../../x", "a\\b", "a//b", "x\n"):
        more = io.BytesIO(WHOLE)
        with zipfile.ZipFile(more, "a") as file:
            file.writestr(extra, b"")
        refusal(path, more.getvalue())
    other = io.BytesIO(WHOLE)
    with zipfile.ZipFile(other, "a") as file:
        file.writestr("second/data.pkl", PROTO + STOP)
    assert "2 members data.pkl" in refusal(path, other.getvalue())


def test_overlapping_members(path):
    """Two directory entries for the same bytes."""
    content = WHOLE.replace(b"archive/version", b"archive/data/00")
    at = content.rindex(b"archive/data/0" + b"PK") - 46
    size, offset = content[at + 20 : at + 28], content[at + 42 : at + 46]
    twin = bytearray(content)
    end = content.rindex(b"archive/data/00") - 46
    twin[end + 20 : end + 28], twin[end + 42 : end + 46] = size, offset
    assert "overlaps" in refusal(path, bytes(twin))


def test_big_endian(path):
    content = WHOLE.replace(b"little", b"bigbig")
    assert "big-endian" in refusal(path, content)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is the download complete?"),
        (b"PK", "is the download complete?"),
        (b"PK\3\4", "too short"),
        (b"PK\3\4" + bytes(100), "incomplete"),
        (WHOLE[:-1], "incomplete"),
        (WHOLE[:200], "incomplete"),
        (WHOLE + b"x", "incomplete"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "is not a file of torch.save"),
        (bytes(257) + b"ustar" + bytes(300), "is not a file of torch.save"),
    ],
)
def test_what_is_no_archive(content, part, path):
    assert part in refusal(path, content)


# The format of torch before 1.6

LEGACY_HEAD = b"".join(
    PROTO + part + STOP
    for part in (
        b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little"),
        number(1001),
        dict_of(little_endian=b"\x88"),
    )
)
LEGACY_X = tensor(storage("Float", "0", 2, b"N"), (2,))


LEGACY_KEYS = b"]" + text("0") + b"a"
LEGACY_DATA = struct.pack("<q", 2) + bytes(8)


def legacy(pickled=dict_of(x=LEGACY_X), keys=LEGACY_KEYS, data=LEGACY_DATA):  # noqa: B008
    return LEGACY_HEAD + PROTO + pickled + STOP + PROTO + keys + STOP + data


def test_legacy(path):
    path.write_bytes(legacy())
    assert np.array_equal(np.array(read(path)["x"]), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "content",
    [
        legacy(data=b""),
        legacy(data=struct.pack("<q", 2) + bytes(7)),
        legacy(data=struct.pack("<q", 2**62) + bytes(8)),
        legacy(data=struct.pack("<q", -2) + bytes(8)),
        legacy(keys=b"]"),
        legacy(keys=b"]" + text("1") + b"a"),
        legacy(keys=b"](" + text("0") * 2 + b"e"),
        legacy(keys=b"]]a"),
        legacy(keys=b"N"),
        legacy(pickled=b"}"),
        legacy(pickled=dict_of(x=call(name("os", "system"), text("x")))),
        legacy().replace(number(1001), number(1000)),
        legacy().replace(b"\x88", b"\x89", 1),
        LEGACY_HEAD,
        LEGACY_HEAD[:14],
    ],
)
def test_legacy_that_lies(content, path):
    refusal(path, content)


def test_a_file_that_shrinks_after_it_was_opened(path):
    path.write_bytes(WHOLE)
    file = TorchFile(path)
    os.truncate(path, len(WHOLE) - 1)
    with pytest.raises(ValueError, match="has changed"):
        file.load("x")


# Fuzzing


def read_or_message(content):
    """None, or the message of the ValueError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        path.write_bytes(content)
        try:
            read(path)
        except ValueError as error:
            return str(error).replace(str(path), "PATH")


ZIP, LEGACY = ((DATA / f"torch_{n}.bin").read_bytes() for n in ("zip", "legacy"))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    content=st.sampled_from([ZIP, LEGACY, WHOLE]),
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    end=st.one_of(st.none(), st.integers(0, 4000)),
)
def test_damage_is_refused_or_harmless(content, flips, end):
    """Any bytes changed, the file cut anywhere: ValueError, or tensors as announced."""
    damaged = bytearray(content[:end])
    for position, byte in flips:
        if damaged:
            damaged[position % len(damaged)] = byte
    message = read_or_message(damaged) or "PATH"
    assert "PATH" in message
    assert "\n" not in message


OPCODES = [bytes([code]) for code in range(256)]
PIECES = [X, EMPTY, text("x"), number(3), name("torch", "FloatStorage"), b"q\0", b"h\0"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(PIECES), st.sampled_from(OPCODES), st.binary(max_size=9)
        ),
        max_size=30,
    )
)
def test_random_pickles(pieces):
    message = read_or_message(archive(b"".join(pieces), TWO)) or "PATH"
    assert "PATH" in message
    assert "\n" not in message
