"""An archive of 200 captures while a worker is killed, on clusters of processes as people start them; and how fast."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

import bitlens
from bitlens.cli import main
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(bitlens.__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """What a shell starts in the background, these tests perhaps, does not hear Ctrl-C, nor does what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def write_captures(folder: Path, count: int, side: int = 32, frames: int = 4) -> None:
    """Different recordings of one measurement each."""
    folder.mkdir()
    scene = high_speed_scene(frames=frames, height=side, width=side, oversample=1)
    mask = random_mask(frames, side, side, 0)
    for index in range(count):
        video = np.roll(scene, (index % side, index // side), axis=(1, 2))
        measured = np.einsum("thw,thw->hw", video, mask)[None]
        np.savez(folder / f"{index:03d}.npz", measurement=measured, mask=mask, axes="thw")


@contextmanager
def started(*arguments: object, **settings: bool) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended in the end, with all that it started."""
    command = [sys.executable, "-m", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def reconstruct(folder: Path, out: Path, *flags: object) -> list[object]:
    return ["bitlens", "reconstruct", folder, "--out", out, "--model", "gap-tv", "--format", ".npz", *flags]


def finished(out: Path) -> int:
    return len(list(out.glob("*.npz")))


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    while finished(out) < count and process.poll() is None:
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes in which its nannies have workers."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@contextmanager
def cluster(kind: str, folder: Path) -> Iterator[tuple[list[str], list[subprocess.Popen[str]]]]:
    """(flags, processes of two workers and of a scheduler); without the latter the cluster is the command's own."""
    if kind == "local":
        yield ["--cluster", "local", "--workers", "2"], []
        return
    with ExitStack() as stack:
        file = folder / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file]
        scheduler = stack.enter_context(started("dask", "scheduler", *options))
        while not file.exists():
            time.sleep(0.1)
        own = ["--nthreads", "1", "--no-dashboard", "--scheduler-file", file, "--local-directory", folder / "scratch"]
        workers = [stack.enter_context(started("dask", "worker", *own)) for _ in range(2)]
        time.sleep(0.5)
        yield ["--cluster", json.loads(file.read_text())["address"]], [*workers, scheduler]


@pytest.mark.parametrize("kind", ["local", "separate"])
def test_two_hundred_captures_while_a_worker_dies(kind: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_captures(folder, 200)
    with cluster(kind, tmp_path) as (flags, holders):
        with started(*reconstruct(folder, out, *flags)) as process:
            wait_for(out, 100, process)
            killed = workers_of((holders or [process])[0])[0]
            killed.send_signal(signal.SIGKILL)
            said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
        assert "wrote 200 captures" in said and "Traceback" not in said and finished(out) == 200
        assert sorted(path.suffix for path in out.iterdir()).count(".npz") == 200 == len(list(out.iterdir())) - 1
        assert not list(out.rglob("*unfinished*"))
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        with started(*reconstruct(folder, out, *flags)) as process:
            said, _ = process.communicate(timeout=600)
        assert process.returncode == 0 and "200 of 200 are there" in said and "wrote 0 captures" in said
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert main(["reconstruct", str(folder), "--out", str(tmp_path / "alone"), "--model", "gap-tv",
                 "--format", ".npz"]) == 0  # fmt: skip
    assert main(["reconstruct", str(folder / "123.npz"), "--out", str(tmp_path / "one.npz"), "--model", "gap-tv"]) == 0
    for path in sorted(folder.iterdir()):
        ours = np.load(out / path.name)["video"]
        np.testing.assert_array_equal(ours, np.load(tmp_path / "alone" / path.name)["video"])
    np.testing.assert_array_equal(np.load(out / "123.npz")["video"], np.load(tmp_path / "one.npz")["video"])


def test_interrupted_with_its_workers(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a terminal: what is finished stays, nothing half is left, and nobody."""
    folder, out = tmp_path / "in", tmp_path / "out"
    write_captures(folder, 400)
    flags = ["--cluster", "local", "--workers", "2"]
    with started(*reconstruct(folder, out, *flags), start_new_session=True) as process:
        wait_for(out, 10, process)
        workers = workers_of(process)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "bitlens reconstruct: interrupted" in said and "Traceback" not in said, said
    kept = finished(out)
    assert 10 <= kept < 400 and not list(out.rglob("*unfinished*"))
    assert not [worker for worker in workers if worker.is_running()]
    with started(*reconstruct(folder, out, *flags)) as process:
        said, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and f"{kept} of 400 are there" in said and finished(out) == 400


def test_a_scheduler_that_goes_away(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_captures(folder, 200)
    with cluster("separate", tmp_path) as (flags, (*_, scheduler)):
        with started(*reconstruct(folder, out, *flags)) as process:
            wait_for(out, 3, process)
            scheduler.kill()
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 2 and "Traceback" not in said, said
        assert "--cluster tcp://" in said.splitlines()[-1] and "finished results are kept" in said.splitlines()[-1], (
            said
        )


def test_how_much_faster_two_workers_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints it; what it is depends on what else the machine does."""
    folder, count = tmp_path / "in", 60
    write_captures(folder, count, 128, 8)
    rates = {}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        with started(*reconstruct(folder, out, "--cluster", "local", "--workers", workers)) as process:
            said, _ = process.communicate(timeout=3600)
        assert process.returncode == 0, said
        ends = sorted(path.stat().st_mtime for path in out.glob("*.npz"))
        first = count // 10  # all workers are at work
        rates[workers] = (count - 1 - first) / (ends[-1] - ends[first])
    with capsys.disabled():
        print(
            f"\n{rates[1]:.2f} captures/s with one worker of one thread, {rates[2]:.2f} with two: "
            f"{rates[2] / rates[1]:.2f} times as fast ({os.cpu_count()} cores)"
        )
