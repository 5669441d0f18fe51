"""Runs command lines apart from the tests, and tells how they ended: `forks.py` is what runs them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    """Its exit code; -9 where it was killed."""
    hung: bool
    seconds: float
    peak_mb: float
    """Of memory, that of the libraries included."""
    out: str
    err: str


class Commands:
    """Runs command lines in forks of a Python that has imported everything (forks.py)."""

    def __init__(self, folder: Path) -> None:
        self.shown = folder / "shown"
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "100"}
        command = [sys.executable, str(TESTS / "forks.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        self.threads = self.answer()["threads"]

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __call__(
        self,
        arguments: Sequence[object],
        folder: Path,
        *,
        seconds: float = 30,
        after: float | None = None,
        number: int = signal.SIGKILL,
        most: int | None = None,
    ) -> Ended:
        """Run `bitlens ARGUMENTS` in a folder; as `forks.run`."""
        order: dict[str, Any] = dict(arguments=[str(one) for one in arguments], folder=str(folder), number=int(number))
        order |= dict(shown=str(self.shown), seconds=seconds, after=after, most=most)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        out, err = (Path(f"{self.shown}{end}").read_text(errors="replace") for end in (".out", ".err"))
        return Ended(**answer, out=out, err=err)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
