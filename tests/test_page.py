"""One HTML page of results: whole, loads nothing, shows what was measured, and escapes what it is given."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitlens.cli import main
from bitlens.report import Panel
from bitlens.report.charts import Axis, Point, Series, scatter
from bitlens.report.page import page, sections_of, videos

ROOT = Path(__file__).resolve().parents[1]


class Reader(HTMLParser):
    """Collects tags, what they point to, and whether all are closed."""

    VOID = ("meta", "link", "img", "input", "path", "circle", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader


def tuned() -> dict[str, Any]:
    row = {"loss": 0.1, "error": 1e-5, "ms": 3.0, "MB": 0.2, "GMAC": 0.5}
    return {
        "format": "bitlens-tuned-1", "start": "net", "budgets": {"ms": 4.0, "mb": None}, "measure": "alone",
        "data": {"data": "made scenes"}, "timed": [3, 64, 64], "threads": 2, "calibrated": "mse", "steps": 5,
        "chosen": {"a<b>": "w4a6", "c": "w8a8"}, "predicted": row, "measured": row | {"psnr": 30.0, "psnr_float": 30.1},
        "uniform": [row | {"bits": "w8a8"}], "curve": [row, row | {"ms": 2.0, "loss": 0.4}],
        "errors": {"a<b>": {"w4a6": 1e-6}, "c": {"w8a8": 1e-7}},
        "milliseconds": {"a<b>": {"w4a6": 1.0}, "c": {"w8a8": 2.0}}, "run": {"bitlens": "0.1.0"},
    }  # fmt: skip


def test_every_kind_of_result_is_shown_and_nothing_is_loaded() -> None:
    results = [("mine", tuned())]
    for name in ("dun", "gap-tv", "benchmark-dun"):
        results.append((name, json.loads((ROOT / "results" / f"{name}.json").read_text())))
    text = page("a <title>", sections_of(results))
    reader = read(text)
    assert all(link.startswith("data:") for link in reader.links) and "http" not in re.sub(r"<pre>.*?</pre>", "", text)
    assert reader.count["table"] == 1 and reader.count["svg"] == 1 and reader.count["section"] == 4
    assert "a &lt;title&gt;" in text and "a&lt;b&gt;" in text and "<b>w4a6</b>" in text
    assert "31.44" in text and "kobe" in text  # DUN's mean, a scene


def test_networks_that_were_timed_are_drawn_by_their_quality_and_costs() -> None:
    score = {"psnr": 30.0, "ssim": 0.9, "flicker": 0.01, "banding": 0.25}

    def evaluated(model: str, psnr: float) -> dict[str, Any]:
        settings = {"data": "a set", "model": model}
        return {"scenes": {"one": score | {"psnr": psnr}}, "average": score | {"psnr": psnr}, "settings": settings}

    rows = [
        {
            "name": f"{model}, {engine}",
            "model": model,
            "median_s": seconds,
            "weights_mb": 1.0,
            "psnr": 1,
            "failure": None,
        }
        for model, engine, seconds in (("a", "slow", 0.3), ("a", "fast", 0.1), ("b", "fast", 0.05), ("c", "fast", 0.2))
    ]
    timed = {"rows": rows, "float_model": "a", "environment": {"cpu": "?"}, "models": ["a", "b"], "size": [8],
             "unit": "image", "threads": 1, "run": {}}  # fmt: skip
    quality, speed = sections_of([("1", evaluated("a", 31.0)), ("2", timed), ("3", evaluated("b", 30.5))])
    assert len(quality.charts) == 2 and "a, fast: 31.00 dB, 100.0 ms, 1.00 MB" in quality.charts[0]
    assert "slow" not in quality.charts[0] and "c, fast" not in quality.charts[0] and speed.title == "Speed: a, b"
    assert quality.columns[-2:] == ["flicker", "banding"] and quality.rows[0][-2:] == ["2.55", "0.25"]
    (alone,) = sections_of([("1", evaluated("a", 31.0))])
    assert not alone.charts


def test_experiments_are_shown_beside_their_papers() -> None:
    for name, expected in (("experiments/qsci-ablation", ["direct", "", "-3.81", "-4.11"]),
                           ("sr/table-swinir-light-x2", ["MinMax", "4", "-0.58", "-3.76"])):  # fmt: skip
        (section,) = sections_of([(name, json.loads((ROOT / "results" / f"{name}.json").read_text()))])
        assert section.rows[0] == expected and {len(row) for row in section.rows} == {len(section.columns)}


def test_videos_meet_under_a_slider() -> None:
    clip = np.linspace(0, 1, 4 * 16 * 16, dtype=np.float32).reshape(4, 16, 16)
    panels = [Panel("one", "27 dB", clip), Panel("still", "a frame", clip[:1]), Panel("</script>", "sharp", clip)]
    text = page("demo", [videos("films", "", panels)])
    assert read(text).count["option"] == 3 + 3 + 2 and "<option></script>" not in text
    found = re.search(r'<script type="application/json">(.*?)</script>', text, re.S)
    assert found is not None
    shown = json.loads(found[1])
    assert [len(one["frames"]) for one in shown] == [4, 4, 4] and shown[2]["title"] == "</script>"
    assert all(frame.startswith("data:image/webp;base64,") for one in shown for frame in one["frames"])
    assert len(set(shown[0]["frames"])) == 4 and len(set(shown[1]["frames"])) == 1


def test_with_the_truth_errors_are_shown_and_quality_is_drawn_frame_by_frame() -> None:
    truth = np.linspace(0, 1, 3 * 16 * 16, dtype=np.float32).reshape(3, 16, 16)
    near = truth + np.array([0.1, 0.01, 0.001], dtype=np.float32)[:, None, None]
    measured, panel = Panel("measurement", "", truth[:1]), Panel("near", "", near)
    section = videos("films", "", [panel], measured, Panel("truth", "", truth))
    assert [one["title"] for one in section.videos] == ["measurement", "near", "truth"]
    decibels, similar = section.charts
    assert "near, frame 1: 20.00" in decibels and "near, frame 2: 40.00" in decibels and "measurement" not in decibels
    assert "near, frame 3" in similar and "the error of each" in page("demo", [section])
    assert "the error of each" not in page("demo", [videos("films", "", [panel], measured)])


@pytest.mark.parametrize("values", [[0.0, 1.0], [3.7, 3.9, 1e3], [0.1], [-2.0, 5.0], [1e-7, 3e-7], [0.0]])
def test_axes_hold_all_values_between_round_numbers(values: list[float]) -> None:
    axis = Axis(values)
    assert all(0 <= axis.share(value) <= 1 for value in values) and 2 <= len(axis.ticks) <= 8
    assert axis.ticks[0] == pytest.approx(axis.low) and axis.ticks[-1] == pytest.approx(axis.high)


def test_points_lie_where_they_belong() -> None:
    points = [Point(0.0, 0.0, "low", "n"), Point(10.0, 1.0, "", "n")]
    text = scatter([Series("a", points, line=True)], "ms", "dB")
    (x1, y1), (x2, y2) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text)
    assert float(x1) < float(x2) and float(y1) > float(y2) and ">low</text>" in text
    with pytest.raises(ValueError, match="no point to draw"):
        scatter([Series("a", [])], "x", "y")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, out = tmp_path / "mine.json", tmp_path / "page.html"
    result.write_text(json.dumps(tuned()))
    assert main(["report", str(result), "--out", str(out), "--title", "mine"]) == 0
    assert "<h1>mine</h1>" in out.read_text() and "wrote" in capsys.readouterr().out
    result.write_text("{}")
    for arguments, words in (
        ([str(result)], "is no result that a page shows"),
        ([str(tmp_path / "none.json")], "no file"),
        ([], "nothing to show"),
    ):
        assert main(["report", *arguments, "--out", str(tmp_path / "b.html")]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "b.html").exists()
