"""An output is there whole or not at all: no half file, no temporary name, no folder made in vain."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitlens.files import _sweep, atomic_folder, atomic_path, is_part


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "table.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("a")
        assert temporary.parent == target.parent and temporary.suffix == ".csv"
        assert not target.exists()
    assert target.read_text() == "a"
    assert [path for path in everything(tmp_path) if path.is_file()] == [target]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), atomic_path(tmp_path / "new" / "table.csv") as temporary:
        temporary.write_text("half")
        raise failure
    with pytest.raises(failure), atomic_folder(tmp_path / "other" / "frames") as folder:
        (folder / "frame.png").write_bytes(b"half")
        raise failure
    assert everything(tmp_path) == []


def test_old_file_survives_failure(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old" and everything(tmp_path) == [target]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"nothing was written .*; wanted .*; write"),
        atomic_path(tmp_path / "a.txt"),
    ):
        pass
    assert everything(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.png").write_text("x")
    before = everything(tmp_path)
    with (
        pytest.raises(OSError, match=r"is a file; wanted a folder; choose"),
        atomic_path(tmp_path / "file" / "a.txt"),
    ):
        pass
    with (
        pytest.raises(OSError, match=r"is a folder; wanted the path of a file; add"),
        atomic_path(tmp_path / "full"),
    ):
        pass
    with (
        pytest.raises(OSError, match=r"is not empty; wanted a new or an empty folder"),
        atomic_folder(tmp_path / "full"),
    ):
        pass
    with (
        pytest.raises(OSError, match=r"is a file; wanted the path of a folder"),
        atomic_folder(tmp_path / "file"),
    ):
        pass
    assert everything(tmp_path) == before


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlens.files.os.access", lambda *_: False)
    match = r"no permission in folder .*; wanted a writable folder; choose"
    with pytest.raises(PermissionError, match=match), atomic_path(tmp_path / "a.txt"):
        pass


def test_folder_replaces_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    with atomic_folder(tmp_path / "frames") as folder:
        (folder / "a.png").write_text("a")
    assert everything(tmp_path) == [tmp_path / "frames", tmp_path / "frames" / "a.png"]
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "shared"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o750  # searchable, or nobody but root could read in it


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with atomic_path(tmp_path / "a.gif") as temporary:
        name = temporary.name
        assert is_part(temporary) and not is_part(tmp_path / "a.gif") and not is_part(tmp_path / ".hidden.gif")
        temporary.write_text("whole")
    gone = name.replace(f"-{os.getpid()}-", f"-{ended.stdout.strip()}-")
    elsewhere = re.sub(r"part-\w{8}", "part-00000000", gone)  # another machine's, whose processes are not known here
    for one in (gone, name, elsewhere):
        (tmp_path / one).write_text("half")
    (tmp_path / gone.replace(".gif", "")).mkdir()
    (tmp_path / gone.replace(".gif", "") / "frame.png").write_text("half")
    _sweep.cache_clear()
    with atomic_path(tmp_path / "b.gif") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.gif", "b.gif", name, elsewhere}


def test_a_folder_can_be_entered_by_its_owner(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "frames") as folder:
        (folder / "a.png").write_text("a")
    assert (tmp_path / "frames").stat().st_mode & 0o700 == 0o700
