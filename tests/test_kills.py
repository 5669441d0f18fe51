"""Whatever ends a command line, its outputs are there whole or not at all, and what it leaves is named as unfinished.

The slow tests kill `BITLENS_KILLS` (500) command lines of all verbs that write at random moments, seeded.
"""

import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from commands import Commands
from writing import check_outputs, commands_that_write, empty, tensors, unfinished

from bitlens.cli import VERBS
from bitlens.files import is_part

KILLS = int(os.environ.get("BITLENS_KILLS", "500"))
READ_ONLY = ("info", "models")
APART = ("benchmark", "experiment", "matrix", "tune")
"""Verbs that start processes, train for minutes or go on with their file; it is written as those of the others."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    for name in ("av", "tifffile", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} (bitlens[dev]) is not installed")
    return commands_that_write(tmp_path_factory.mktemp("inputs"))


def killed_verbs(lines: dict[str, list[str]]) -> list[str]:
    """Those that can be run here."""
    return [name for name in lines if name != "costs" or find_spec("bitlens_kernels")]


def remove_finished(folder: Path) -> None:
    """Remove what lies in a folder, but for what is named as unfinished."""
    for path in folder.iterdir():
        if not is_part(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_all_verbs_are_here(lines: dict[str, list[str]]) -> None:
    assert {line[0] for line in lines.values()} | {*READ_ONLY, *APART} == set(VERBS)


@pytest.mark.slow
def test_kills(lines: dict[str, list[str]], commands: Commands, tmp_path: Path) -> None:
    names = killed_verbs(lines)
    random = np.random.default_rng(0)
    caught = done = 0
    for number, name in enumerate(names):
        place = empty(tmp_path / f"place{number}")
        first = commands(lines[name], place, seconds=200)
        assert first.code in (0, 1) and not first.err, f"{name}: {first.err}"
        files = {path.relative_to(place) for path in check_outputs(place / "out")}
        assert files and not unfinished(place), name
        for _ in range(KILLS // len(names) + (number < KILLS % len(names))):
            if name.endswith("folder") or random.random() < 0.5:
                remove_finished(place / "out")
            after = first.seconds * (random.uniform(0, 1.05) if random.random() < 0.5 else random.uniform(0.7, 1.05))
            ended = commands(lines[name], place, seconds=200, after=after)
            assert ended.code in (first.code, -signal.SIGKILL), f"{name} after {after:.3f} s: {ended}"
            done += 1
            caught += ended.code == -signal.SIGKILL
            left = {path.relative_to(place) for path in check_outputs(place / "out")}
            assert left <= files, f"{name} after {after:.3f} s left {left - files}"
        if name.endswith("folder"):
            remove_finished(place / "out")
        last = commands(lines[name], place, seconds=200)
        assert last.code == first.code and not last.err, f"{name} at the end: {last.err}"
        assert {path.relative_to(place) for path in check_outputs(place / "out")} == files
        assert not unfinished(place), f"{name}: the next run leaves {unfinished(place)}"
    assert done == KILLS and caught > 0.5 * KILLS


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_been(
    lines: dict[str, list[str]], commands: Commands, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    whole, place = empty(tmp_path / "whole"), empty(tmp_path / "killed")
    line = [*lines["train"], "--steps", "40"]
    first = commands(line, whole, seconds=600)
    assert first.code == 0, first.err
    for _ in range(max(1, KILLS // 25)):
        ended = commands(line, place, seconds=600, after=random.uniform(0.2, 0.8) * first.seconds)
        assert ended.code in (0, -signal.SIGKILL), ended.err
        check_outputs(place / "out")
        if ended.code == 0:
            break
    ended = commands(line, place, seconds=600)
    assert ended.code == 0, ended.err
    one, other = (tensors(folder / "out" / "t.safetensors") for folder in (whole, place))
    assert all(one[key].equal(other[key]) for key in one) and one.keys() == other.keys()
    logs = [(folder / "out" / "run" / "log.jsonl").read_text().splitlines() for folder in (whole, place)]
    assert [line.split(', "seconds"')[0] for line in logs[0]] == [line.split(', "seconds"')[0] for line in logs[1]]


@pytest.mark.slow
@pytest.mark.parametrize("number, said", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_an_interrupted_verb_says_one_line_and_leaves_nothing(
    lines: dict[str, list[str]], commands: Commands, tmp_path: Path, number: signal.Signals, said: str
) -> None:
    for index, name in enumerate(killed_verbs(lines)):
        if name == "train":
            continue  # it saves its state, and says how to go on
        place = empty(tmp_path / f"place{index}")
        spent = commands(lines[name], place, seconds=200).seconds
        files = {path.relative_to(place) for path in check_outputs(place)}
        for share in (0.3, 0.6, 0.9):
            ended = commands(lines[name], empty(place), seconds=200, after=share * spent, number=number)
            if ended.code in (0, 1):
                check_outputs(place)
                continue
            code = 130 if number == signal.SIGINT else 128 + number
            assert (ended.code, ended.err) == (code, f"bitlens {lines[name][0]}: {said}\n"), f"{name}: {ended}"
            finished = {path.relative_to(place) for path in check_outputs(place)}
            assert not unfinished(place) and finished <= files, f"{name} left {finished}, {unfinished(place)}"


@pytest.mark.slow
def test_an_interrupted_training_is_saved(lines: dict[str, list[str]], commands: Commands, tmp_path: Path) -> None:
    line = [*lines["train"], "--steps", "100000"]
    ended = commands(line, tmp_path, seconds=200, after=20, number=signal.SIGINT)
    assert ended.code == 130 and "the same command goes on" in ended.out and not ended.err, ended
    assert not (tmp_path / "out" / "t.safetensors").exists() and not unfinished(tmp_path)
    check_outputs(tmp_path / "out")
