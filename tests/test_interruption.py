"""A conversion that is ended at any point: the destination is absent or complete."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from io import FileIO

import mlx.core as mx
import pytest
from tiny_checkpoint import config_of, write_checkpoint

from mlx_glu import convert
from mlx_glu.checkpoints.checkpoint import INDEX
from mlx_glu.conversion import destination
from mlx_glu.conversion.journal import JOURNAL, Journal
from mlx_glu.conversion.writer import Writer
from mlx_glu.tensor_info import TensorInfo

#: What is converted to: packed, in a dozen files.
PACKED = {"quantize": True, "q_group_size": 32}
FLAGS = ["-q", "--q-group-size", "32"]

#: Converts, and sends itself a signal before a line of the package is run. It prints
#: how many there are.
CHILD = """
import os, signal, sys, threading
from mlx_glu import cli
from mlx_glu.conversion import convert, destination
number, moment, *arguments = sys.argv[1:]
convert.MAX_SHARD, destination.WORTH_KEEPING = 15_000, 0
names = ("convert", "destination", "journal", "model_folder", "provenance", "writer")
files = {sys.modules[f"mlx_glu.conversion.{name}"].__file__ for name in names}
files.add(sys.modules["mlx_glu.hashing"].__file__)
lines = 0
def count(frame, event, value):
    global lines
    if frame.f_code.co_filename not in files:
        return None
    lines += event == "line"
    if lines == int(moment):
        lines += 1
        os.kill(os.getpid(), int(number))
    return count
threading.settrace(count)
sys.settrace(count)
try:
    cli.main(["convert", *arguments])
finally:
    print(lines)
"""


@pytest.fixture(autouse=True)
def same_date(monkeypatch):
    """So that equal conversions are equal byte for byte."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture
def many_files(monkeypatch):
    """Of so small a model as well, and all that was done is kept."""
    monkeypatch.setattr("mlx_glu.conversion.convert.MAX_SHARD", 15_000)
    monkeypatch.setattr(destination, "WORTH_KEEPING", 0)


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "hf", config_of("llama", num_hidden_layers=2))


@pytest.fixture
def old(source, tmp_path_factory):
    """A model that may be replaced."""
    folder = tmp_path_factory.mktemp("old") / "mlx"
    convert(source, folder, dtype="float16")
    return folder


@pytest.fixture
def new(source, many_files, tmp_path_factory):
    """What an undisturbed conversion makes."""
    folder = tmp_path_factory.mktemp("new") / "mlx"
    convert(source, folder, **PACKED)
    assert len([*folder.glob("*.safetensors")]) > 5
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def hook(monkeypatch, act, at=6):
    """Call ``act`` before a tensor is written; count those that are."""
    written = []

    class Hooked(Writer):
        def write(self, name, array):
            if len(written) == at:
                written.append(None)
                act()
            written.append(name)
            super().write(name, array)

    monkeypatch.setattr("mlx_glu.conversion.convert.Writer", Hooked)
    return written


def interrupt(monkeypatch, source, target, at=6, **options):
    def act():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        hook(patch, act, at)
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, **PACKED, **options)


def run_child(number, moment, *arguments, **options):
    command = [sys.executable, "-c", CHILD, str(int(number)), str(moment)]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, **options
    )


# Killed


def test_killed_at_random_moments(source, old, new, tmp_path):
    """Whatever line was next, in half of the cases one of the last."""
    target, before = tmp_path / "mlx", content(source)
    flags = ["--hf-path", source, "--mlx-path", target, *FLAGS]
    wanted, last = content(new), content(old)
    total = int(run_child(0, -1, *flags).stdout.split()[-1])
    assert content(target) == wanted
    chance, seen = random.Random(5), set()
    for _ in range(30):
        number = chance.choice([signal.SIGKILL, signal.SIGINT])
        moment = int(total * chance.uniform(chance.choice([0, 0.9]), 1))
        replacing, resuming = chance.choice([True, False]), chance.choice([True, False])
        shutil.rmtree(target)
        if replacing:
            shutil.copytree(old, target)
        case = (
            f"{number.name} before line {moment} of {total}, {replacing=} {resuming=}"
        )
        extra = ["--overwrite"] * replacing
        done = run_child(number, moment, *flags, *extra)
        assert done.returncode in (-9, 130, 0), (case, done.stderr)
        left = content(target) if target.exists() else None
        assert left in ((last, wanted) if replacing else (None, wanted)), case
        assert content(source) == before, case
        kept = (tmp_path / ".mlx.partial" / "new").exists()
        seen.add((number, replacing, resuming, left == wanted, kept))
        if left == wanted and not replacing:
            with pytest.raises(FileExistsError):
                convert(source, target, **PACKED, resume=resuming)
        else:
            convert(source, target, **PACKED, overwrite=replacing, resume=resuming)
        assert content(target) == wanted, case
        assert names(tmp_path) == ["hf", "mlx"], case
    assert len(seen) > 8, seen


#: Makes a folder of one file, killed before line 1, 2, 3 ... of what makes it; then
#: once more without harm. It prints the number of lines, and what went wrong.
SWEEP = """
import os, signal, sys
from pathlib import Path
from mlx_glu.conversion import destination, journal

files, here = {destination.__file__, journal.__file__}, Path(sys.argv[1])
overwrite, exchange = sys.argv[2] == "True", sys.argv[3] == "True"
target = here / "mlx"
if not exchange:
    destination._exchange = lambda *paths: False

def make(text):
    destination.check_destination(here / "hf", target, overwrite)
    about = {"settings": {"text": text}}
    with destination.new_folder(target, overwrite, about) as (folder, _):
        (folder / "config.json").write_text(text)

def killed(moment):
    lines = 0
    def count(frame, event, value):
        nonlocal lines
        if frame.f_code.co_filename not in files:
            return None
        lines += event == "line"
        if lines == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return count
    child = os.fork()
    if not child:
        sys.settrace(count)
        make("new")
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL

def text():
    return (target / "config.json").read_text() if target.exists() else None

if overwrite:
    make("old")
before, moment = text(), 1
while killed(moment):
    found = text()
    if not exchange and (here / ".mlx.partial" / "old").exists():
        found = found or "old"  # in a moment
    if found not in (before, "new"):
        print(f"before line {moment}: {found}")
    if found == "new" and not overwrite:
        try:
            make("newer")
        except FileExistsError:
            pass
        target.rename(here / "away")
        (here / "away" / "config.json").unlink()
        (here / "away").rmdir()
    else:
        make("old")
        if text() != "old":
            print(f"after line {moment}: {text()}")
        if not overwrite:
            (target / "config.json").unlink()
            target.rmdir()
    if [p.name for p in here.iterdir()] != ["mlx"] * overwrite:
        print(f"left after line {moment}:", os.listdir(here))
    moment += 1
print(moment)
"""


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "new"])
def test_killed_before_every_line(overwrite, exchange, tmp_path):
    arguments = [str(tmp_path), str(overwrite), str(exchange)]
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdecimal(), done.stdout
    assert int(done.stdout) > 80


@pytest.mark.slow
def test_killed_at_random_times(tmp_path):
    """From outside, and while a run resumes as well: a model of 60 MB."""
    sizes = {"hidden_size": 512, "vocab_size": 8000, "num_hidden_layers": 6}
    source = write_checkpoint(tmp_path / "hf", config_of("llama", **sizes))
    target, whole = tmp_path / "mlx", tmp_path / "whole"
    start = time.perf_counter()
    flags = ["--hf-path", source, *FLAGS]
    assert run_child(0, -1, *flags, "--mlx-path", whole).returncode == 0
    seconds, wanted = time.perf_counter() - start, content(whole)
    chance, resumed = random.Random(3), 0
    for _ in range(60):
        number = chance.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        extra = ["--mlx-path", target] + ["--resume"] * chance.choice([0, 1, 1])
        command = [sys.executable, "-c", CHILD, "0", "-1", *flags, *extra]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.2, 1) * seconds)
        process.send_signal(number)
        process.wait()
        resumed += (tmp_path / ".mlx.partial" / "new").exists()
        if target.exists():
            assert content(target) == wanted
            shutil.rmtree(target)
    assert resumed > 5
    convert_again = [*flags, "--mlx-path", target, "--resume"]
    assert run_child(0, -1, *convert_again).returncode == 0
    assert content(target) == wanted
    assert names(tmp_path) == ["hf", "mlx", "whole"]


# Resumed


def test_resume_writes_what_is_left(source, new, tmp_path, monkeypatch):
    target = tmp_path / "mlx"
    interrupt(monkeypatch, source, target, at=20)
    assert names(tmp_path) == [".mlx.partial", "hf"]
    written = hook(monkeypatch, lambda: None, -1)
    convert(source, target, **PACKED, resume=True)
    assert content(target) == content(new)
    total = sum(
        len(json.loads(v)["weight_map"]) for k, v in content(new).items() if k == INDEX
    )
    # What waited to be written when it was interrupted is written again.
    assert total - 20 <= len(written) < total
    assert names(tmp_path) == ["hf", "mlx"]


def test_without_resume_it_starts_afresh(source, new, tmp_path, monkeypatch):
    interrupt(monkeypatch, source, tmp_path / "mlx", at=20)
    written = hook(monkeypatch, lambda: None, -1)
    convert(source, tmp_path / "mlx", **PACKED)
    assert len(written) > 20
    assert content(tmp_path / "mlx") == content(new)
    assert names(tmp_path) == ["hf", "mlx"]


def test_resume_with_nothing_to_resume(source, new, tmp_path):
    convert(source, tmp_path / "mlx", **PACKED, resume=True)
    assert content(tmp_path / "mlx") == content(new)


def change_source(source):
    weights = source / "model.safetensors"
    os.utime(weights, ns=(1, 1))


CHANGES = {
    "settings": ({"q_bits": 8}, lambda source: None, "q_bits was None, is 8"),
    "dtype": ({"dtype": "float16"}, lambda source: None, "dtype was None"),
    "source": ({}, change_source, "source model.safetensors was "),
}


@pytest.mark.parametrize(("changes", "act", "message"), CHANGES.values(), ids=CHANGES)
def test_resume_of_something_else(
    changes, act, message, source, new, tmp_path, monkeypatch
):
    """It says what differs, and throws nothing away."""
    interrupt(monkeypatch, source, tmp_path / "mlx")
    stamp = (source / "model.safetensors").stat().st_mtime_ns
    act(source)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "mlx", **PACKED, **changes, resume=True)
    os.utime(source / "model.safetensors", ns=(stamp, stamp))
    written = hook(monkeypatch, lambda: None, -1)
    convert(source, tmp_path / "mlx", **PACKED, resume=True)
    assert content(tmp_path / "mlx") == content(new)
    assert len(written) < len(json.loads((new / INDEX).read_text())["weight_map"])


def cut(path, size):
    os.truncate(path, path.stat().st_size - size)


def lose(path):
    """What a loss of power leaves: the length is right, the blocks never came."""
    length = path.stat().st_size
    os.truncate(path, length // 2)
    os.truncate(path, length)


def last_file(work):
    return max((work / "new").glob("*.safetensors"))


DAMAGES = {
    "torn tensor": lambda work: cut(last_file(work), 10),
    "lost blocks": lambda work: lose(last_file(work)),
    "more than was told": lambda work: last_file(work).write_bytes(
        last_file(work).read_bytes() + bytes(100_000)
    ),
    "first file changed": lambda work: lose(min((work / "new").glob("*.safeten*"))),
    "file gone": lambda work: last_file(work).unlink(),
    "empty file": lambda work: cut(last_file(work), last_file(work).stat().st_size),
    "torn journal": lambda work: cut(work / JOURNAL, 30),
    "no journal line": lambda work: os.truncate(work / JOURNAL, 0),
    "strange lines": lambda work: (work / JOURNAL).write_bytes(
        (work / JOURNAL).read_bytes()
        + b'\n{"a": 1}\n["%s", [1], 2]\n' % last_file(work).name.encode()
        + b"[" * 100_000
    ),
    "nonsense": lambda work: (work / JOURNAL).write_bytes(b'\n{"a": {}}\n7\n[1]\nx'),
    "folder gone": lambda work: shutil.rmtree(work / "new"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_resume_trusts_nothing(damage, source, new, tmp_path, monkeypatch):
    interrupt(monkeypatch, source, tmp_path / "mlx", at=25)
    damage(tmp_path / ".mlx.partial")
    if damage is DAMAGES["nonsense"]:
        with pytest.raises(ValueError, match="start afresh without --resume"):
            convert(source, tmp_path / "mlx", **PACKED, resume=True)
    convert(
        source, tmp_path / "mlx", **PACKED, resume=damage is not DAMAGES["nonsense"]
    )
    assert content(tmp_path / "mlx") == content(new)
    assert names(tmp_path) == ["hf", "mlx"]


def test_nothing_takes_the_place_of_what_failed(tmp_path, monkeypatch):
    """Two tensors of one size, and a disk that has room again for the second."""
    fails = [False, True, False]

    class Disk(FileIO):
        def write(self, data):
            if fails.pop(0):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr("mlx_glu.conversion.writer.FileIO", Disk)
    arrays, marks = {"a": mx.zeros(9), "b": mx.ones(9)}, []
    infos = {name: TensorInfo(a.dtype, a.shape) for name, a in arrays.items()}
    path = tmp_path / "model.safetensors"

    def write(writer):
        for name in list(writer.left):
            writer.write(name, arrays[name])
        time.sleep(0.2)  # for the thread, which goes on

    with (
        pytest.raises(OSError, match="No space"),
        Writer(path, infos, [], marks.append) as writer,
    ):
        write(writer)
    fails[:] = [False] * 3
    with Writer(path, infos, marks) as writer:
        write(writer)
    assert mx.array_equal(mx.load(str(path))["a"], arrays["a"])
    assert mx.array_equal(mx.load(str(path))["b"], arrays["b"])


def test_a_little_work_is_not_kept(source, new, tmp_path, monkeypatch):
    monkeypatch.setattr(destination, "WORTH_KEEPING", 1 << 20)
    interrupt(monkeypatch, source, tmp_path / "mlx")
    assert names(tmp_path) == ["hf"]


def test_a_mistake_is_not_kept(source, new, tmp_path):
    """Resuming would only find it again."""
    weights = dict(mx.load(str(source / "model.safetensors")))
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].at[3, 5].add(mx.nan)
    write_checkpoint(source, config_of("llama", num_hidden_layers=2), weights)
    with pytest.raises(ValueError, match=name):
        convert(source, tmp_path / "to" / "mlx", **PACKED, check=True)
    assert names(tmp_path) == ["hf"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_line_says_how_to_go_on(number, source, new, tmp_path):
    flags = ["--hf-path", source, "--mlx-path", tmp_path / "mlx", *FLAGS]
    total = int(run_child(0, -1, *flags).stdout.split()[-1])
    shutil.rmtree(tmp_path / "mlx")
    done = run_child(number, total // 2, *flags)
    assert done.returncode == (130 if number == signal.SIGINT else 143)
    assert ".mlx.partial is kept, and --resume continues" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_child(0, -1, *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "mlx") == content(new)


# Files that fail


def test_source_cut_short_meanwhile(source, new, tmp_path, monkeypatch):
    """An incomplete copy is not taken for the model; the whole one can go on."""
    weights = source / "model.safetensors"
    whole, stamp = weights.read_bytes(), weights.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        hook(patch, lambda: os.truncate(weights, len(whole) // 2))
        with pytest.raises(OSError, match=r"was changed while it was read; what was"):
            convert(source, tmp_path / "mlx", **PACKED)
    weights.write_bytes(whole)
    os.utime(weights, ns=(stamp, stamp))
    convert(source, tmp_path / "mlx", **PACKED, resume=True)
    assert content(tmp_path / "mlx") == content(new)


def test_source_gone_and_back(source, new, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        hook(patch, lambda: source.rename(tmp_path / "away"))
        with pytest.raises(OSError, match="changed while it was read"):
            convert(source, tmp_path / "mlx", **PACKED)
    (tmp_path / "away").rename(source)
    convert(source, tmp_path / "mlx", **PACKED, resume=True)
    assert content(tmp_path / "mlx") == content(new)


def test_source_rewritten_meanwhile(source, tmp_path, monkeypatch):
    """Half of one model and half of another would load, and talk nonsense."""
    hook(monkeypatch, lambda: os.utime(source / "model.safetensors", ns=(1, 1)))
    with pytest.raises(OSError, match="changed while it was read"):
        convert(source, tmp_path / "mlx", **PACKED)
    assert names(tmp_path) == ["hf"]


@pytest.mark.parametrize("what", ["parent", "work", "new"])
def test_folder_removed_meanwhile(what, source, many_files, tmp_path, monkeypatch):
    target = tmp_path / "to" / "mlx"
    parts = {"parent": "", "work": ".mlx.partial", "new": ".mlx.partial/new"}
    hook(monkeypatch, lambda: shutil.rmtree(target.parent / parts[what]), at=6)
    with pytest.raises(OSError, match="mlx cannot be made: "):
        convert(source, target, **PACKED)
    assert names(tmp_path) == ["hf"]


def test_removed_at_the_very_end(source, many_files, tmp_path, monkeypatch):
    """And begun again by another process: its work is left alone."""
    target, others = tmp_path / "mlx", []

    def begin_again(*arguments):
        shutil.rmtree(tmp_path / ".mlx.partial")
        others.append(Journal(tmp_path / ".mlx.partial"))
        (tmp_path / ".mlx.partial" / "new").mkdir()

    monkeypatch.setattr("mlx_glu.conversion.provenance.write", begin_again)
    with pytest.raises(OSError, match="removed meanwhile"):
        convert(source, target, **PACKED)
    assert names(tmp_path / ".mlx.partial") == [JOURNAL, "new"]
    others[0].__exit__()


def limited(nbytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))


def test_file_size_limit(source, new, tmp_path):
    flags = ["--hf-path", source, "--mlx-path", tmp_path / "mlx", *FLAGS]
    done = run_child(0, -1, *flags, preexec_fn=partial(limited, 9_000))
    assert done.returncode == 2
    assert "mlx cannot be made: [Errno 27]" in done.stderr
    assert "what was done is kept, and --resume continues" in done.stderr
    assert not (tmp_path / "mlx").exists()
    assert run_child(0, -1, *flags, "--resume").returncode == 0
    assert content(tmp_path / "mlx") == content(new)
    assert names(tmp_path) == ["hf", "mlx"]


#: A disk of 100 kB that fills up, then grows: the second run goes on.
FULL_DISK = """
mount -t tmpfs -o size=100k tmpfs "$1" || exit 77
shift; "$@"; echo "$?" >&2; ls -A "$DISK"
mount -o remount,size=10m "$DISK" && "$@" --resume && cp -r "$DISK/mlx" "$COPY"
ls -A "$DISK"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_full_disk(source, new, tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    flags = ["--hf-path", source, "--mlx-path", disk / "mlx", *FLAGS]
    command = [sys.executable, "-c", CHILD, "0", "-1", *flags]
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", FULL_DISK, "sh"]
    done = subprocess.run(
        [str(word) for word in [*inside, disk, *command[:-4], *command[-4:]]],
        capture_output=True,
        text=True,
        env=os.environ | {"DISK": str(disk), "COPY": str(copy)},
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs user namespaces")
    assert os.strerror(errno.ENOSPC) in done.stderr
    assert "what was done is kept, and --resume continues" in done.stderr
    listed = [line for line in done.stdout.splitlines() if "mlx" in line]
    assert listed[0] == ".mlx.partial"
    assert listed[-1] == "mlx"
    assert content(copy) == content(new)


def test_full_disk_names_the_destination(source, tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hook(monkeypatch, full)
    with pytest.raises(OSError, match=r"/mlx cannot be made: .*No space left"):
        convert(source, tmp_path / "mlx")
    with pytest.raises(OSError, match=r"config.json/mlx cannot be made: "):
        convert(source, source / "config.json" / "mlx")
    assert names(tmp_path) == ["hf"]


# Who else is there


def test_one_conversion_at_a_time(source, new, tmp_path):
    with Journal(tmp_path / ".mlx.partial"):
        (tmp_path / ".mlx.partial" / "new").mkdir()
        with pytest.raises(OSError, match="mlx cannot be made: another conversion"):
            convert(source, tmp_path / "mlx", **PACKED)
        assert names(tmp_path / ".mlx.partial") == [JOURNAL, "new"]
    convert(source, tmp_path / "mlx", **PACKED)
    assert content(tmp_path / "mlx") == content(new)
    assert names(tmp_path) == ["hf", "mlx"]


def test_another_was_faster(source, new, tmp_path, monkeypatch):
    """It began after this one had looked, and is done before this one begins."""

    def about(*arguments):
        shutil.copytree(new, tmp_path / "mlx")
        return {}

    monkeypatch.setattr("mlx_glu.conversion.provenance.about", about)
    with pytest.raises(OSError, match="mlx cannot be made: it exists by now"):
        convert(source, tmp_path / "mlx", **PACKED)
    assert content(tmp_path / "mlx") == content(new)
    assert names(tmp_path) == ["hf", "mlx"]


def test_many_at_once(source, new, tmp_path):
    flags = ["--hf-path", source, "--mlx-path", tmp_path / "mlx", *FLAGS]
    command = [str(word) for word in [sys.executable, "-c", CHILD, "0", "-1", *flags]]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(4)]
    ended = [(process.communicate()[1], process.returncode) for process in running]
    assert sorted(code for _, code in ended) == [0, 2, 2, 2], ended
    assert all(code == 0 or "exists" in e or "another" in e for e, code in ended), ended
    assert content(tmp_path / "mlx") == content(new)
    assert names(tmp_path) == ["hf", "mlx"]


def test_folder_of_that_name_is_no_work_of_ours(source, tmp_path):
    (tmp_path / ".mlx.partial").mkdir()
    (tmp_path / ".mlx.partial" / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        convert(source, tmp_path / "mlx")
    assert names(tmp_path / ".mlx.partial") == ["diary.txt"]


def test_folder_that_appears_meanwhile_is_kept(source, tmp_path, monkeypatch):
    def appear():
        (tmp_path / "mlx").mkdir()
        (tmp_path / "mlx" / "diary.txt").write_text("mine")

    hook(monkeypatch, appear)
    with pytest.raises(OSError, match="mlx"):
        convert(source, tmp_path / "mlx")
    assert (tmp_path / "mlx" / "diary.txt").read_text() == "mine"
    assert names(tmp_path) == ["hf", "mlx"]


# Replaced


def test_failed_replacement_keeps_the_old_folder(source, tmp_path, monkeypatch):
    convert(source, tmp_path / "mlx")
    before = content(tmp_path / "mlx")
    monkeypatch.setattr("mlx_glu.conversion.provenance.write", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(source, tmp_path / "mlx", dtype="float16", overwrite=True)
    assert content(tmp_path / "mlx") == before
    assert names(tmp_path) == ["hf", "mlx"]


@pytest.mark.parametrize("exchange", [True, False])
def test_link_is_replaced_not_followed(exchange, source, old, tmp_path, monkeypatch):
    """The model it leads to stays as it is."""
    if not exchange:
        monkeypatch.setattr(destination, "_exchange", lambda *paths: False)
    before = content(old)
    (tmp_path / "mlx").symlink_to(old)
    convert(source, tmp_path / "mlx", **PACKED, overwrite=True)
    assert content(old) == before
    assert not (tmp_path / "mlx").is_symlink()
    assert names(tmp_path) == ["hf", "mlx"]


def test_exchange_is_one_step(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    if not destination._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two folders")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").is_dir()
    with pytest.raises(FileNotFoundError):
        destination._exchange(tmp_path / "a", tmp_path / "absent")


@pytest.mark.parametrize("renames", [1, 2])
def test_old_folder_survives_where_nothing_can_be_exchanged(
    renames, source, tmp_path, monkeypatch
):
    """Renames fail from some point on, back included: the old model is still there."""
    target = tmp_path / "mlx"
    convert(source, target)
    before = content(target)
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(source)
        if len(calls) > renames:
            raise OSError("no more renames")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(destination, "_exchange", lambda *paths: False)
        patch.setattr("mlx_glu.conversion.destination.os.rename", failing)
        with pytest.raises(OSError, match="no more renames"):
            convert(source, target, **PACKED, overwrite=True)
    # The next run puts it back before it does anything else.
    with pytest.raises(FileExistsError):
        convert(source, target)
    assert content(target) == before
    assert names(tmp_path) == ["hf", "mlx"]


def test_destination_is_safe(source, tmp_path):
    target = tmp_path / "mlx"
    target.mkdir()
    (target / "diary.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(source, target)
    with pytest.raises(ValueError, match="not a model folder"):
        convert(source, target, overwrite=True)
    with pytest.raises(ValueError, match="holds the source"):
        convert(source, source, overwrite=True)
    with pytest.raises(ValueError, match="holds the source"):
        convert(source, tmp_path, overwrite=True)
    assert (target / "diary.txt").read_text() == "mine"
    convert(source, tmp_path / "ok")
    convert(source, tmp_path / "ok", dtype="float16", overwrite=True)
    arrays = mx.load(str(tmp_path / "ok" / "model.safetensors"))
    assert {a.dtype for a in arrays.values()} == {mx.float16}
    assert names(tmp_path) == ["hf", "mlx", "ok"]
