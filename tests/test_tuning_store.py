"""The file of verdicts: what it keeps, and what may have happened to it."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

from mlx_glu.paired import Comparison
from mlx_glu.tuning import Machine, Store
from mlx_glu.tuning import store as store_module
from mlx_glu.tuning.verdicts import Verdict

HERE = Machine("Apple M4", "applegpu_g16g", 16 << 30, 10, "macOS 26.1", "0.32.4", "0.1")
KEY = "glu_mul-swiglu-float16-64", "1"
FASTER = Verdict.of(Comparison(1.041, 1.03, 1.05))
SLOWER = Verdict.of(Comparison(0.9, 0.89, 0.91))
BROKEN = Verdict.failure("glu_mul, M = 1: 3 of 31 elements are worse than stock")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tuning" / "verdicts.json"


def text(section, key=HERE.key):
    return json.dumps({key: section})


def test_what_is_added_is_there_for_the_next_process(path):
    store = Store(path)
    assert store.verdicts(HERE) == {}
    added = {KEY: FASTER, (KEY[0], "2 to 5"): SLOWER, ("down", "1"): BROKEN}
    for key, verdict in added.items():
        store.add(HERE, key, verdict)
    assert store.verdicts(HERE) == Store(path).verdicts(HERE) == added
    found = json.loads(path.read_text())[HERE.key][KEY[0]]["1"]
    assert (found["impl"], found["speedup"], found["self_test"]) == (
        *("fused", 1.041),
        "passed",
    )
    assert path.read_text().count("\n") > 20  # for readers


def test_reasons():
    today = FASTER.date
    assert FASTER.impl == "fused"
    assert FASTER.why == f"4.1% faster here, measured {today}"
    assert SLOWER.why == f"11.1% slower here, measured {today}"
    small = Verdict.of(Comparison(1.01, 1.005, 1.02))
    assert (small.impl, small.why) == (
        "stock",
        f"1.0% faster here, below 3%, measured {today}",
    )
    unsure = Verdict.of(Comparison(1.2, 0.99, 1.4))
    assert (unsure.impl, unsure.why) == (
        "stock",
        f"20.0% faster here but within noise, measured {today}",
    )
    assert BROKEN.impl == "stock"
    assert BROKEN.why.startswith(f"its self-test failed here on {today}: glu_mul, M")


@pytest.mark.parametrize(
    "field", ["name", "architecture", "memory", "cores", "os", "mlx", "package"]
)
def test_another_machine_or_version_is_asked_anew_and_keeps_its_own(path, field):
    old = getattr(HERE, field)
    other = replace(HERE, **{field: old * 2 if type(old) is int else f"{old}.1"})
    Store(path).add(HERE, KEY, FASTER)
    store = Store(path)
    assert store.verdicts(other) == {}
    store.add(other, KEY, SLOWER)
    assert Store(path).verdicts(HERE) == {KEY: FASTER}
    assert Store(path).verdicts(other) == {KEY: SLOWER}


def test_what_another_version_wrote_is_not_looked_at_and_stays(path):
    path.parent.mkdir()
    path.write_text(text([{"of the": "future"}], "MLX 9"))
    Store(path).add(HERE, KEY, FASTER)
    assert json.loads(path.read_text())["MLX 9"] == [{"of the": "future"}]


def entry(**changed):
    return text({KEY[0]: {"1": {**FASTER.as_json(), **changed}}})


MALFORMED = {
    "empty": "",
    "truncated": entry()[:-9],
    "not JSON": "verdicts: none",
    "not UTF-8": b"\xff\xfe{}",
    "zeros": b"\0" * 500,
    "a list": "[1, 2]",
    "null": "null",
    "nested": "[" * 200_000,
    "nested objects": '{"a":' * 200_000,
    "a long number": text(0).replace("0", "9" * 5000),
    "section of another type": text(["x"]),
    "case of another type": text({KEY[0]: 3}),
    "verdict of another type": text({KEY[0]: {"1": "fused"}}),
    "verdict is a list": text({KEY[0]: {"1": [1]}}),
    "no fields": text({KEY[0]: {"1": {}}}),
    "too many fields": entry(more=1),
    "a text for a number": entry(speedup="1.5"),
    "true for a number": entry(speedup=True),
    "nan": entry(speedup=float("nan")),
    "infinity": entry(speedup=float("inf")),
    "negative": entry(speedup=-1.5),
    "no number": entry(low=None),
    "fused without proof": entry(low=0.5),
    "fused untested": entry(self_test="failed"),
    "a date of another type": entry(date=20260131),
    "a test of another type": entry(self_test=True),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_as_none_is_named_once_and_replaced(path, content):
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_recovers(path)


def assert_recovers(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = Store(path)
        assert store.verdicts(HERE) == {}
        store.add(HERE, KEY, SLOWER)
        store.add(HERE, ("other", "1"), FASTER)
    assert len(caught) == 1
    assert f"{path} cannot be read (" in str(caught[0].message)
    both = {KEY: SLOWER, ("other", "1"): FASTER}
    assert store.verdicts(HERE) == Store(path).verdicts(HERE) == both


def test_a_malformed_section_costs_the_others_nothing(path):
    Store(path).add(HERE, KEY, FASTER)
    other = replace(HERE, mlx="0.33")
    machines = json.loads(path.read_text()) | {other.key: "?"}
    path.write_text(json.dumps(machines))
    assert Store(path).verdicts(HERE) == {KEY: FASTER}
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        Store(path).add(other, KEY, SLOWER)
    assert Store(path).verdicts(HERE) == {KEY: FASTER}
    assert Store(path).verdicts(other) == {KEY: SLOWER}


def test_100_megabytes(path):
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(100 << 20)
    assert_recovers(path)


def test_a_folder_in_its_place_keeps_its_content(path):
    path.mkdir(parents=True)
    (path / "precious").touch()
    assert_recovers(path)
    (kept,) = path.parent.glob("moved-*/verdicts.json/precious")
    assert kept.exists()


def test_a_pipe_in_its_place(path):
    path.parent.mkdir()
    os.mkfifo(path)
    assert_recovers(path)


def test_a_link_to_itself_in_its_place(path):
    path.parent.mkdir()
    path.symlink_to(path)
    assert_recovers(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_a_file_that_nobody_may_read(path):
    Store(path).add(HERE, KEY, FASTER)
    path.chmod(0)
    assert_recovers(path)


@pytest.fixture(params=["a file", "no such device", "no permission"])
def readonly(request, tmp_path):
    """A path below which nothing can be written."""
    if request.param == "a file":
        (tmp_path / "cache").write_text("not a folder")
    elif request.param == "no such device":
        if not os.path.isdir("/proc/self"):
            pytest.skip("needs /proc, which refuses root too")
        (tmp_path / "cache").symlink_to("/proc/self")
    elif os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    else:
        (tmp_path / "cache").mkdir(mode=0o500)
    return tmp_path / "cache" / "tuning" / "verdicts.json"


def test_where_nothing_can_be_written_verdicts_live_in_memory(readonly):
    store = Store(readonly)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store.add(HERE, KEY, FASTER)
        store.add(HERE, ("other", "1"), SLOWER)
    assert len(caught) == 1
    assert f"{readonly} cannot be written (" in str(caught[0].message)
    assert store.verdicts(HERE) == {KEY: FASTER, ("other", "1"): SLOWER}
    store.reset()
    assert store.verdicts(HERE) == {}


def test_without_a_home_verdicts_live_in_memory():
    store = Store(None)
    store.add(HERE, KEY, FASTER)
    assert store.verdicts(HERE) == {KEY: FASTER}
    store.reset()
    assert store.verdicts(HERE) == {}


def test_a_disk_that_is_full_leaves_the_old_file(path, monkeypatch):
    store = Store(path)
    store.add(HERE, KEY, FASTER)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        store.add(HERE, KEY, SLOWER)
    monkeypatch.undo()
    assert Store(path).verdicts(HERE) == {KEY: FASTER}
    assert store.verdicts(HERE) == {KEY: SLOWER}


def test_reset_removes_the_file(path):
    store = Store(path)
    store.reset()  # nothing there
    store.add(HERE, KEY, FASTER)
    store.reset()
    assert not path.exists()
    assert store.verdicts(HERE) == {}
    path.mkdir()
    store.reset()
    assert not path.exists()


def test_reset_says_when_it_cannot(path, monkeypatch):
    store = Store(path)
    store.add(HERE, KEY, FASTER)
    monkeypatch.setattr(store_module, "_wait_for", refuse)
    with pytest.raises(ValueError, match=r"\[tuning\] .*verdicts.json cannot be remo"):
        store.reset()


def refuse(lock):
    raise PermissionError("no")


PRELUDE = """
import os, sys
from pathlib import Path
from mlx_glu.paired import Comparison
from mlx_glu.tuning import Machine, Store
from mlx_glu.tuning.verdicts import Verdict
machine = Machine("M", "", 1, 1, "", "")
path, name = Path(sys.argv[1]), sys.argv[2]
verdict = Verdict.of(Comparison(1.5, 1.4, 1.6))
"""
MANY = 60
WRITES = f"""
store = Store(path)
for i in range({MANY}):
    store.add(machine, (f"{{name}}-{{i}}", "1"), verdict)
"""
DIES_WRITING = """
def die(*_):
    os._exit(9)
Store(path).add(machine, ("first", "1"), verdict)
os.replace = die
Store(path).add(machine, ("second", "1"), verdict)
"""
HOLDS = """
with Store(path)._locked():
    print("held", flush=True)
    sys.stdin.read()
"""
THEIRS = Machine("M", "", 1, 1, "", "")


def start(program, path, name="", **pipes):
    line = [sys.executable, "-W", "error", "-c", PRELUDE + program, str(path), name]
    return subprocess.Popen(line, text=True, **pipes)


def test_processes_that_write_at_once_lose_nothing(path):
    names = ["a", "b", "c"]
    writers = [start(WRITES, path, name) for name in names]
    # Each state of the file that a reader meets is whole.
    sizes = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.poll() is None for writer in writers):
            sizes.append(len(Store(path).verdicts(THEIRS)))
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sizes == sorted(sizes)
    expected = {(f"{name}-{i}", "1") for name in names for i in range(MANY)}
    assert Store(path).verdicts(THEIRS).keys() == expected
    leftover = {p.name for p in path.parent.iterdir()}
    assert leftover == {"verdicts.json", "verdicts.lock"}


def test_a_crash_leaves_no_lock_and_no_half_file(path):
    assert start(DIES_WRITING, path).wait() == 9
    assert list(Store(path).verdicts(THEIRS)) == [("first", "1")]
    Store(path).add(THEIRS, ("third", "1"), FASTER)
    assert list(Store(path).verdicts(THEIRS)) == [("first", "1"), ("third", "1")]
    assert {p.suffix for p in path.parent.iterdir()} == {".json", ".lock"}


def test_who_holds_the_lock_for_ever_stops_nobody(path, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.05)
    with start(HOLDS, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == "held\n"
        store = Store(path)
        with pytest.warns(RuntimeWarning, match=r"cannot be written \(locked for"):
            store.add(HERE, KEY, FASTER)
        assert store.verdicts(HERE) == {KEY: FASTER}
        holder.kill()
    Store(path).add(HERE, KEY, SLOWER)
    assert Store(path).verdicts(HERE) == {KEY: SLOWER}
