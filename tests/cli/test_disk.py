"""A disk that is full, files that may not grow, a folder that is read-only: one line, and no half output."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from writing import commands_that_write, unfinished

from bitlens.cli import in_parts, main
from bitlens.files import atomic_folder, atomic_path

QUICK = (
    "measure", "reconstruct .gif", "reconstruct .mp4", "reconstruct .tif", "reconstruct folder", "upscale .png",
    "upscale .tif", "upscale film", "restore", "demo", "calibrate", "evaluate", "convert",
)  # fmt: skip
SLOW = ("upscale folder", "cameras", "verify", "quantize", "adapt", "export .onnx", "export .xml", "train")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    for name in ("av", "tifffile", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} (bitlens[dev]) is not installed")
    return commands_that_write(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts an empty file system in memory, with options, at `out` of the folder for tests."""
    place = tmp_path / "out"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode(errors='replace').strip()}")
        return place

    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True)


def refused(line: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command line ends with; nothing is left in `out`."""
    capsys.readouterr()
    assert main(line) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"bitlens {line[0]}: .+; wanted .+; .+\n", said), said
    assert not unfinished(folder)
    left = [path for path in (folder / "out").rglob("*") if path.is_file() and "run" not in path.parts]
    assert not left, left
    return said


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.skipif(sys.platform != "linux", reason="files are mounted as Linux does it")
@pytest.mark.parametrize("name", NAMES)
def test_full_disk(
    name: str,
    lines: dict[str, list[str]],
    mounted: Callable[[str], Path],
    cache: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = mounted("size=4k,nr_inodes=100")
    (place / "filler").write_bytes(bytes(4096))
    capsys.readouterr()
    assert main(lines[name]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"bitlens {lines[name][0]}: .*; wanted room for it; .+\n", said), said
    assert [path for path in place.rglob("*") if path.is_file()] == [place / "filler"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits on files")
@pytest.mark.parametrize("name", NAMES)
def test_files_that_may_not_grow(
    name: str, lines: dict[str, list[str]], cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, most[1]))
    try:
        said = refused(lines[name], tmp_path, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert "files there may not be so large; wanted room for it" in said


@pytest.mark.skipif(sys.platform != "linux", reason="files are mounted as Linux does it")
@pytest.mark.parametrize("name", ["measure", "reconstruct folder", "upscale film", "demo", "convert"])
def test_read_only(
    name: str,
    lines: dict[str, list[str]],
    mounted: Callable[[str], Path],
    cache: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mounted("ro,size=4k")
    assert "no permission in folder" in refused(lines[name], tmp_path, capsys)


def test_what_the_system_says_is_told_in_three_parts(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        (tmp_path / ("x" * 300)).read_text()
    assert re.fullmatch(r"File name too long \(.*x\); wanted a place .*; check the path.*", in_parts(caught.value))
    assert in_parts(MemoryError()).startswith("MemoryError; wanted")
    assert in_parts(ValueError("as it is")) == "as it is"


def test_names_of_any_length_that_is_allowed(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".gif", "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 80 + ".png"):
        with atomic_path(tmp_path / name) as temporary:
            np.save(temporary.with_suffix(".npy"), np.zeros(1))
            temporary.with_suffix(".npy").rename(temporary)
        assert (tmp_path / name).is_file()
    with atomic_folder(tmp_path / ("y" * 255)) as folder:
        assert folder.is_dir()
