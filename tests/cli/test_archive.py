"""Many files with one command: results whole or not at all, what is there is skipped, workers may die."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from bitlens.cli import clusters, main, reconstruct, watching, with_values
from bitlens.cli.archive import Item, expand, item_of, over, room_in
from bitlens.cli.reconstruct import Reconstruct, captures_in
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import read_video, write_video

SCENE = high_speed_scene(frames=16, height=32, width=32, oversample=1)
MASK = random_mask(4, 32, 32, 0)


def capture(path: Path, index: int = 0) -> Path:
    """A recording of four frames, different for each index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video = np.roll(SCENE[:4], index, axis=2)
    measured = np.einsum("thw,thw->hw", video, MASK)[None]
    np.savez(path, measurement=measured, mask=MASK, orig=video, axes="thw")
    return path


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    """Three of them, one in a folder of the folder."""
    for index, name in enumerate(("b.npz", "a.npz", "deep/c.npz")):
        capture(tmp_path / "in" / name, index)
    return tmp_path / "in"


def run(*given: Any, model: str = "gap-tv", format: str = ".npz") -> int:
    return main(["reconstruct", *map(str, given), "--model", model, "--format", format])


def videos(folder: Path) -> dict[str, np.ndarray]:
    """The results in a folder."""
    files = [file for file in folder.rglob("*.npz") if ".bitlens" not in file.parts]
    return {file.relative_to(folder).as_posix(): np.load(file)["video"] for file in files}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_folder_becomes_a_folder(captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (captures / "broken.npz").write_bytes((captures / "a.npz").read_bytes()[:500])
    assert run(captures, "--out", out, "--json", tmp_path / "t.json") == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "1 of 4 captures could not be rebuilt (broken.npz), the others" in shown.err
    assert "broken.npz cannot be read" in shown.err and "engine: torch" in shown.out
    results = videos(out)
    assert sorted(results) == ["a.npz", "b.npz", "deep/c.npz"]
    for name, result in results.items():
        single = ["reconstruct", str(captures / name), "--model", "gap-tv", "--out", str(tmp_path / "one.npz")]
        assert main(single) == 0
        np.testing.assert_array_equal(result, np.load(tmp_path / "one.npz")["video"])
    rows = {row["name"]: row for row in json.loads((tmp_path / "t.json").read_text())["results"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "made", "b": "made", "broken": "broken", "deep/c": "made",
    }  # fmt: skip
    assert rows["a"]["facts"]["frames"] == 4 and rows["a"]["facts"]["psnr"] > 15
    assert not list(out.rglob("*unfinished*"))

    capture(captures / "broken.npz", 3)
    before = times(out)
    capsys.readouterr()
    assert run(captures, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "3 of 4 are there" in shown and "wrote 1 captures" in shown and "was there" in shown
    assert sorted(videos(out)) == ["a.npz", "b.npz", "broken.npz", "deep/c.npz"]
    assert {path: before[path] for path in before if path.is_file()}.items() <= times(out).items()
    before = times(out)
    assert run(captures, "--out", out) == 0
    assert times(out) == before and "4 of 4 are there" in capsys.readouterr().out


def test_made_again_where_something_else_was_asked_for(
    captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(captures, "--out", out) == 0
    for change in ([], ["--gain", "1.5"], ["--gain", "1.5", "--crop", "0,0,24,24"]):
        capsys.readouterr()
        assert run(captures, "--out", out, *change) == 0
        assert ("3 of 3 are there" in capsys.readouterr().out) == (not change)
    capture(captures / "a.npz", 5)
    (out / ".bitlens" / "b.npz.json").write_text("{")
    (out / "deep" / "c.npz").unlink()
    assert run(captures, "--out", out, *change) == 0
    assert "are there" not in capsys.readouterr().out


def test_folders_of_frames_are_replaced_whole(captures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for flags in ([], ["--crop", "0,0,24,24"]):
        assert run(captures, "--out", out, *flags, format="folder") == 0
        assert [path.name for path in sorted((out / "a").iterdir())] == [f"frame_{index:04d}.png" for index in range(4)]
    assert read_video(out / "a").shape == (4, 24, 24)


def test_which_folders_are_archives(tmp_path: Path) -> None:
    grey = (SCENE[:3] * 255).astype(np.uint8)
    for folder in ("png", "tif", "stacks", "deep/one", "deep/two", "mixed"):
        (tmp_path / folder).mkdir(parents=True)
    for index, picture in enumerate(grey):
        Image.fromarray(picture).save(tmp_path / "png" / f"{index}.png")
        for folder in ("tif", "mixed"):
            Image.fromarray(picture).save(tmp_path / folder / f"{index}.tif")
        for folder in ("deep/one", "deep/two", "mixed", "stacks"):
            Image.fromarray(picture).save(tmp_path / folder / f"p{index}.png")
        write_video(tmp_path / "stacks" / f"{index}.tif", SCENE[: index + 1])
    capture(tmp_path / "mixed" / "10.npz")
    (tmp_path / "mixed" / ".hidden.npz").write_bytes(b"1")
    assert captures_in(tmp_path / "png") is None and captures_in(tmp_path / "tif") is None

    def names(folder: str) -> list[str]:
        return [path.relative_to(tmp_path / folder).as_posix() for path in captures_in(tmp_path / folder) or []]

    assert names("stacks") == ["0.tif", "1.tif", "2.tif"]
    assert names("deep") == ["one", "two"]
    assert names("mixed") == ["0.tif", "1.tif", "2.tif", "10.npz"]
    (tmp_path / "deep" / "one" / "a.zarr").mkdir()
    assert names("deep") == ["one/a.zarr", "two"]


def test_a_folder_of_pictures_is_one_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for index in range(2):
        measured = np.einsum("thw,thw->hw", SCENE[4 * index : 4 * index + 4], MASK)
        Image.fromarray((measured * 10000).astype(np.uint16)).save(tmp_path / "in" / f"{index}.png")
    np.savez(tmp_path / "mask.npz", mask=MASK, axes="thw")
    given = ["reconstruct", str(tmp_path / "in"), "--mask", str(tmp_path / "mask.npz"), "--model", "gap-tv", "--out"]
    assert main([*given, str(tmp_path / "v.npz")]) == 0
    assert np.load(tmp_path / "v.npz")["video"].shape == (8, 32, 32)
    assert main([*given, str(tmp_path / "many"), "--format", ".npz"]) == 0
    np.testing.assert_array_equal(videos(tmp_path / "many")["in.npz"], np.load(tmp_path / "v.npz")["video"])


def test_patterns_and_names(captures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(captures)

    def names(*given: str | Path) -> list[str]:
        return sorted(expand([Path(each) for each in given], captures_in)[0])

    assert names("*.npz") == names(captures / "*.npz") == names("a.npz", "b.npz") == ["a", "b"]
    assert names("**/*.npz") == names("**") == names(".") == ["a", "b", "deep/c"]
    assert names("[ab].npz", "deep") == ["a", "b", "c"]
    assert expand([Path("a.np?")], captures_in)[1] and not expand([Path("a.npz")], captures_in)[1]
    assert sorted(expand([captures], captures_in, [captures / "a.npz", captures / "deep"])[0]) == ["b"]
    capture(captures / "odd[1].npz")
    assert names("odd[1].npz") == ["odd[1]"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["in/*.mat", "--out", "out"], r"nothing matches in/\*.mat; wanted a pattern"),
        (["in", "--out", "v.mp4"], "--out v.mp4 for several captures; wanted a folder"),
        (["in/a.npz", "in/deep/a.npz", "--out", "out"], "would both become a; wanted one of each name"),
        (["in", "--out", "in"], "--out in is in, which is read"),
        (["in/a.npz", "in/b.npz", "--out", "in", "--format", ".npz"], "which is read; wanted another place"),
        (["in", "--out", "out", "--format", "doc"], "cannot write a video to video.doc; wanted .mp4"),
        (["in", "--out", "out", "--mask", "none.npz"], "no file none.npz; wanted a mask"),
        (["in", "--out", "out", "--model", "none"], "none"),
        (["in", "--out", "in/a.npz/out", "--format", ".npz"], "cannot write to in/a.npz/out"),
        (["in", "--out", "out", "--cluster", "many"], "--cluster many; wanted local, slurm or the address"),
        (["in", "--out", "out", "--cluster", "in/a.npz"], "files go before the flags"),
        (["in", "--out", "out", "--cluster", "--workers", "0"], "--workers 0; wanted a whole number above 0"),
        (["in", "--out", "out", "--workers", "2"], "--workers 2 without --cluster"),
        (["in", "--out", "out", "--cluster", "tcp://a:1", "--workers", "2"], "which has its own"),
        (["in", "--out", "out", "--cluster", "slurm"], "there is no sbatch here"),
        (["in", "--out", "out", "--idle", "1"], "without --watch"),
        (["in", "--out", "out", "--watch", "in"], "--watch in and in; wanted one of them"),
        (["--out", "out", "--watch", "none"], "no folder none; wanted the one where captures arrive"),
        (["--out", "in", "--watch", "in"], "which is read"),
        (["--out", "out"], "no MEASUREMENTS; wanted files or folders"),
    ],
)
def test_refused_in_one_line(
    flags: list[str], said: str, captures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(captures.parent)
    monkeypatch.setattr("shutil.which", lambda name: None)
    (captures / "deep" / "c.npz").rename(captures / "deep" / "a.npz")
    before = sorted(captures.parent.rglob("*"))
    flags = flags if "--model" in flags else [*flags, "--model", "gap-tv"]
    assert main(["reconstruct", *flags]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and said.replace("\\", "") in shown.err, shown.err
    assert sorted(captures.parent.rglob("*")) == before


def test_a_cluster_without_dask(
    captures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run(captures, "--out", tmp_path / "out", "--cluster") == 2
    assert "distributed is not installed; wanted Dask; run pip install 'bitlens[cluster]'" in capsys.readouterr().err


def test_flags_without_values() -> None:
    assert with_values(["a", "--cluster", "--out", "b"]) == ["a", "--cluster", "local", "--out", "b"]
    assert with_values(["a", "--cluster"]) == ["a", "--cluster", "local"]
    assert with_values(["--cluster", "slurm", "a"]) == ["--cluster", "slurm", "a"] and with_values([]) == []


def test_interrupted_runs_go_on(
    captures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, count = reconstruct.rebuild_item, 0

    def interrupted(*given: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return usual(*given)

    out = tmp_path / "out"
    monkeypatch.setattr(reconstruct, "rebuild_item", interrupted)
    assert run(captures, "--out", out) == 130
    shown = capsys.readouterr()
    assert shown.err == "bitlens reconstruct: interrupted\n" and "PSNR" in shown.out
    assert len(videos(out)) == 2 and not list(out.rglob("*unfinished*"))
    assert run(captures, "--out", out) == 0
    assert "2 of 3 are there" in capsys.readouterr().out and len(videos(out)) == 3


# What workers do in the tests below; it travels by value, since they cannot import this file.


def written(item: Item, place: Path) -> dict[str, Any]:
    """A result, by a worker that dies at the first attempt of a name with `dies`, and at every one with `deadly`."""
    tried = item.source.with_name(f"{item.name}.tried")
    first = not tried.exists()
    tried.touch()
    place.write_text("half")
    if "deadly" in item.name or ("dies" in item.name and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if "broken" in item.name:
        raise ValueError("what came; what is wanted; what to do")
    if "fault" in item.name:
        raise KeyError("a fault")
    place.write_text(f"{item.name} {os.environ.get('OMP_NUM_THREADS')}")
    return {"frames": 1, "process": os.getpid()}


@pytest.fixture
def by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def items_in(folder: Path, names: list[str]) -> list[Item]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.in").touch()
    return [item_of(name, folder / f"{name}.in", folder / "out", ".txt", {}) for name in names]


def test_workers_that_die(tmp_path: Path, by_value: None) -> None:
    """Each is replaced, and what it had begun is done again."""
    names = ["a", "dies", "b", "broken", "fault", "c"]
    items = items_in(tmp_path, names)
    with room_in(tmp_path / "out") as room:
        rows = {row.name: row for row in over(items, written, room, "local", 2)}
    assert sorted(rows) == sorted(names)
    assert [name for name in names if rows[name].state == "broken"] == ["broken", "fault"]
    assert rows["broken"].note == "what came; what is wanted; what to do"
    assert rows["fault"].note == "KeyError on a worker: 'a fault'"
    for item in items:
        if rows[item.name].state == "made":
            assert item.out.read_text() == f"{item.name} 1" and item.record.is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".bitlens", "a.txt", "b.txt", "c.txt", "dies.txt",
    ]  # fmt: skip
    assert not list((tmp_path / "out").rglob("*unfinished*"))


class Lost:
    """A future whose result was on a worker that died, until it is waited for once more."""

    key, status = "bitlens-run-0", "lost"

    def __init__(self) -> None:
        self.waited = 0

    def add_done_callback(self, call: Callable[["Lost"], None]) -> None:
        self.waited += 1
        self.status = "lost" if self.waited == 1 else "finished"
        call(self)

    def release(self) -> None:
        pass


def test_a_result_that_is_lost_is_waited_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "run")
    [item], future = items_in(tmp_path, ["a"]), Lost()
    client = SimpleNamespace(map=lambda *_, **__: [future], cancel=lambda *_, **__: None)
    assert list(clusters._done(client, [item], dict, "local")) == [(future, item)]  # type: ignore[arg-type]
    assert (future.status, future.waited) == ("finished", 2)


@pytest.mark.slow
def test_a_file_that_kills_every_worker(tmp_path: Path, by_value: None) -> None:
    """It loses nothing else, and none of its neighbours is blamed."""
    names = ["a", "deadly", "b", "dies", "c", "d"]
    with room_in(tmp_path / "out") as room:
        rows = {row.name: row for row in over(items_in(tmp_path, names), written, room, "local", 2)}
    assert [name for name in names if rows[name].state == "broken"] == ["deadly"] and len(rows) == len(names)
    assert rows["deadly"].note.startswith("every worker that took it died; wanted memory")


def test_nothing_answers(
    captures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusters, "CONNECT", 0.5)
    assert run(captures, "--out", tmp_path / "out", "--cluster", "tcp://127.0.0.1:9") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--cluster tcp://127.0.0.1:9 does not answer (" in said
    assert not (tmp_path / "out").exists()


def test_no_worker_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    monkeypatch.setattr(clusters, "PATIENCE", 1.0)
    settings: dict[str, Any] = dict(n_workers=0, processes=True, dashboard_address=None)
    with distributed.LocalCluster(**settings) as cluster, room_in(tmp_path / "out") as room:
        rows = over(items_in(tmp_path, ["a"]), dict, room, cluster.scheduler_address)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"no worker of --cluster tcp://.* for 1 s; wanted one that stays"):
            list(rows)


def test_a_job_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    import dask

    with dask.config.set({"jobqueue.slurm.memory": "9 GB"}):
        assert clusters.slurm_jobs() == {"cores": 1, "processes": 1}
    script = dask_jobqueue.slurm.SLURMJob(scheduler="tcp://host:1", name="a", **clusters.slurm_jobs()).job_script()
    assert "#SBATCH --cpus-per-task=1" in script and "--nthreads 1" in script


def test_captures_on_a_cluster(captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(captures, "--out", tmp_path / "one") == 0
    (captures / "broken.npz").write_bytes(b"")
    assert run(captures, "--out", tmp_path / "two", "--cluster", "local", "--workers", "1") == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "1 of 4 captures could not be rebuilt (broken.npz)" in shown.err
    one, two = videos(tmp_path / "one"), videos(tmp_path / "two")
    assert sorted(one) == sorted(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_watching(
    captures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there, what is moved in whole, what is written slowly, and what is broken until it is written again."""
    monkeypatch.setattr(watching, "REST", 0.3)
    folder, out = captures, captures / "out"
    (folder / "late").mkdir()

    def arrive() -> None:
        whole = capture(tmp_path / "whole.npz", 7).read_bytes()
        (tmp_path / "whole.npz").rename(folder / "moved.npz")
        with (folder / "slow.npz").open("wb") as file:
            for start in range(0, len(whole), len(whole) // 6):
                file.write(whole[start : start + len(whole) // 6])
                file.flush()
                time.sleep(0.1)
        (folder / "broken.npz").write_bytes(whole[:500])
        time.sleep(1.0)
        (folder / "broken.npz").write_bytes(whole)

    thread = threading.Thread(target=arrive)
    thread.start()
    given = ["--out", out, "--watch", folder, "--json", tmp_path / "t.json"]
    assert run(*given, "--stop-after", "7") == 0
    thread.join()
    shown = capsys.readouterr().out
    assert "broken: left out:" in shown and "slow: left out" not in shown
    assert "frames/s), " in shown and "s after it arrived" in shown and "delay (s)" in shown
    assert sorted(videos(out)) == ["a.npz", "b.npz", "broken.npz", "deep/c.npz", "moved.npz", "slow.npz"]
    rows = json.loads((tmp_path / "t.json").read_text())["results"]
    assert len(rows) == 6 and all(row["state"] == "made" and row["facts"]["delay"] > 0 for row in rows)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    (folder / "bad.npy").write_bytes(b"1")
    assert run(*given, "--idle", "1") == 2
    shown = capsys.readouterr()
    assert shown.out.count("is there") == 6 and "(bad.npy), the others are in" in shown.err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}


def test_watching_ends_with_the_table(
    captures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = Reconstruct.arrived

    def arrived(self: Reconstruct, folder: Path) -> list[Path]:
        if len(list(tmp_path.glob("out/*.npz"))) == 2:
            raise KeyboardInterrupt
        return usual(self, folder)

    monkeypatch.setattr(Reconstruct, "arrived", arrived)
    monkeypatch.setattr(watching, "REST", 0.0)
    assert run("--out", tmp_path / "out", "--watch", captures) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "PSNR (dB)" in shown.out and "wrote 3 captures" in shown.out
