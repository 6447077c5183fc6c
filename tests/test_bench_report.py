"""The report of mlx-glu bench: one file that needs no other, and charts."""

import importlib.util
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from sim_programs import needs_simulator

from mlx_glu.bench import charts, png, report, svg
from mlx_glu.bench.counts import simulate
from mlx_glu.bench.machine import Machine
from mlx_glu.bench.rows import Row, cells
from mlx_glu.cli import main

HERE = Machine("2026-01-02", "0.1", None, "A <chip>", "cpu", "OS 1", "0.32", 100.0)


def timed(arm, M, us, speedup=None, verdict="baseline", **more):
    interval = (speedup * 0.9, speedup * 1.1) if speedup else (None, None)
    return Row(
        *("ffn", arm, "small", "swiglu", "float32", 4, 64, "affine", M, 64, 128),
        *(0.9 * us, us, 1.2 * us),
        bytes=10**6,
        gbps=2.0,
        copy_share=0.02,
        speedup=speedup,
        low=interval[0],
        high=interval[1],
        verdict=verdict,
        impl="mlx",
        **more,
    )


ROWS = [
    timed("stock", 1, 100.0),
    timed("fused", 1, 80.0, 1.25, "faster"),
    timed("stock", 512, 20000.0),
    timed("fused", 512, 25000.0, 0.8, "slower", why="ran stock: <too many> rows"),
    Row("ffn", "concat", "small", M=8, verdict="WRONG", why="off by <7>"),
    Row("ffn", "stock_1000_ops", "small", why="Metal only"),
]
MODEL = [
    Row(op, "stock", "m", M=M, us_p20=9.0, us_p50=us, us_p80=99.0, verdict="baseline")
    for op, M, us in (("prompt", 512, 10.0), ("decode", 1, 90.0))
]


class Text(HTMLParser):
    """Cells, all text, and everything that could load something."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.text, self.tags, self.loads = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [n for n, _ in attributes if n in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.text.append(data)
        if self.tags[-1:] in (["td"], ["th"]) and data.strip():
            self.rows[-1].append(data)


def page(rows=ROWS, **more):
    return report.html(rows, HERE, "mlx-glu bench --rows 1", **more)


def test_nothing_is_loaded_from_elsewhere():
    found = Text(page())
    assert found.loads == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not re.search(r"https?:|url\(|@import|//", page())


def test_each_row_is_in_the_page():
    found = Text(page())
    for row in ROWS[:4]:
        assert cells(row) in found.rows
    text = " ".join(found.text)
    assert "WRONG: concat, M 8: off by <7>" in text
    assert "not run: stock_1000_ops: Metal only" in text
    for fact in ("A <chip>", "100 GB/s", "mlx-glu bench --rows 1", "OS 1"):
        assert fact in text
    assert all(line in text for line in report.METHOD)


def test_failures_come_first():
    text = page(failures=["2 are <WRONG>"], notes=["a note"])
    assert text.index("2 are &lt;WRONG&gt;") < text.index("a note") < text.index("<h2>")


@needs_simulator
def test_simulated_counts_are_called_so():
    import mlx.core as mx

    from mlx_glu.bench.arms import Setup
    from mlx_glu.bench.shapes import Shape
    from mlx_glu.quantization import Quantization

    setup = Setup(Shape("s", 512, 1024), Quantization(64, 4), mx.float32)
    found = Text(page(simulated=simulate([setup])))
    assert "SIMULATED counts, not times: s" in " ".join(found.text)
    assert ["fused_block", "2", "2"] in [row[:3] for row in found.rows]


@pytest.mark.parametrize(
    ("rows", "count"), [(ROWS, 2), (ROWS[:1], 1), (MODEL, 1), ([*ROWS, *MODEL], 3)]
)
def test_charts(rows, count):
    drawn = list(charts.charts(rows))
    assert len(drawn) == count
    for chart in drawn:
        root = ElementTree.fromstring(svg.draw(chart))
        text = [e.text for e in root.iter("text")]
        assert {chart.title, chart.x_label, chart.y_label} <= set(text)
        assert {name for _, name in chart.ticks} <= set(text)
        points = [e for e in root.iter("circle")]
        assert len(points) >= sum(len(s.points) for s in chart.series)
        for e in points:
            assert 0 <= float(e.get("cx")) <= svg.WIDTH
            assert 0 <= float(e.get("cy")) <= svg.HEIGHT


def test_axes():
    times, gains = charts.charts(ROWS)
    assert times.log_y
    assert [x for x, _ in times.ticks] == [0, 9]  # log2 of M
    assert "µs per FFN" in times.y_label
    assert [s.name for s in gains.series] == ["fused"]
    assert gains.level == 1
    low, high = charts.y_range(gains)
    assert low < 0.72
    assert high > 1.375
    assert 2 <= len(charts.y_ticks(gains)) <= 8


def test_png():
    pytest.importorskip("matplotlib")
    image = png.draw(list(charts.charts([*ROWS, *MODEL])), "a chip")
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(image) > 10_000


def test_no_matplotlib_is_said_before_anything(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    target = tmp_path / "p.png"
    with pytest.raises(SystemExit) as leaving:
        main(["bench", "--plot", str(target)])
    out, err = capsys.readouterr()
    assert (leaving.value.code, out) == (2, "")
    assert "pip install 'mlx-glu[plot]'" in err
    assert not [*tmp_path.iterdir()]


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(TypeError):
        report.write(path, None)
    assert path.read_text() == "old"
    report.write(path, b"new")
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "new"
    other = tmp_path / "plain"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_cli_writes_both(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page, image = tmp_path / "r.html", tmp_path / "p.png"
    flags = ["--shape", "64x128", "--rows", "1", "2", "-n", "2", "--no-simulate"]
    flags += ["--max-variation", "1000", "--report", str(page), "--plot", str(image)]
    main(["bench", *flags])
    assert image.read_bytes().startswith(b"\x89PNG")
    found = Text(page.read_text())
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    lines = [words for words in printed if words[:1] in (["1"], ["2"])]
    shown = [" ".join(row).split() for row in found.rows]
    assert len(lines) == 4
    assert all(line in shown for line in lines)


def test_only_a_file_is_replaced_and_a_link_stays_one(tmp_path):
    pipe, real, link = tmp_path / "pipe", tmp_path / "real", tmp_path / "link"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="is a device or a pipe; name a file"):
        report.check_path("--report", pipe)
    link.symlink_to(real)
    report.check_path("--report", link)
    report.write(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
