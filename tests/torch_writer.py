"""What ``torch.save`` writes, made without torch, opcode by opcode."""

import io
import struct
import zipfile

PROTO, STOP = b"\x80\x02", b"."
KINDS = {
    "float32": "Float",
    "float16": "Half",
    "float64": "Double",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def call(function, *args):
    return function + tuple_of(*args) + b"R"


def dict_of(**items):
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


EMPTY = call(name("collections", "OrderedDict"))


def storage(kind, key, room, *more):
    return (
        tuple_of(
            text("storage"),
            name("torch", f"{kind}Storage"),
            text(key),
            text("cpu"),
            number(room),
            *more,
        )
        + b"Q"
    )


def tensor(stored, shape, strides=None, first=0):
    """A view of a storage; strides of a contiguous one if none are given."""
    if strides is None:
        strides, step = [], 1
        for n in reversed(shape):
            strides.insert(0, step)
            step *= n
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        stored,
        number(first),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        b"\x89",
        EMPTY,
    )


def archive(pickle, storages=(), root="archive", compression=zipfile.ZIP_STORED):
    """A zip archive of a pickle and its storages, a dict of bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", PROTO + pickle + STOP)
        file.writestr(f"{root}/byteorder", "little")
        for key, data in dict(storages).items():
            file.writestr(f"{root}/data/{key}", data)
        file.writestr(f"{root}/version", "3\n")
    return out.getvalue()


def save(path, arrays):
    """Write numpy arrays as ``torch.save`` writes a state_dict; returns ``path``."""
    items = {
        key: tensor(storage(KINDS[str(a.dtype)], f"{i}", a.size), a.shape)
        for i, (key, a) in enumerate(arrays.items())
    }
    data = {f"{i}": a.tobytes() for i, a in enumerate(arrays.values())}
    path.write_bytes(archive(dict_of(**items), data, path.stem))
    return path
