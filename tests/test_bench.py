"""Contestants take turns in processes of their own; one that fails does not stop the others."""

import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bitlens.bench.turns import (
    THREADS,
    Contestant,
    Timing,
    environment,
    interleave,
    peak_memory,
    thread_limit,
)


def test_contestants_take_turns(tmp_path: Path) -> None:
    turns: list[str] = []
    contestants = [
        Contestant("sleeps", partial, (time.sleep, 0.02)),
        Contestant("computes", partial, (math.sqrt, 9.0)),
        Contestant("fails", partial, (math.sqrt, -1.0)),
        Contestant("dies", partial, (os._exit, 1)),
        Contestant("fills", partial, (np.ones, (4, 1 << 20))),
    ]
    kept = [one for one in contestants if one.name in ("computes", "fills")]
    sleeps, computes, fails, dies, fills = interleave(contestants, 2, threads=1, on_turn=turns.append)
    names = [one.name for one in contestants]
    assert turns == names + [name for name in names if name not in ("fails", "dies")] * 2
    assert len(sleeps.seconds) == 2 and 0.02 <= sleeps.median < 1.0 and sleeps.start > 0.02 and sleeps.value is None
    assert computes.value == 3.0 and computes.failure is None
    assert fails.failure and not fails.seconds
    assert dies.failure is not None and "died" in dies.failure and not dies.seconds
    assert fills.peak_mb > sleeps.peak_mb + 25  # 33.6 MB of ones
    assert [len(timing.seconds) for timing in interleave(kept, 1, keep=tmp_path)] == [1, 1]
    assert float(np.load(tmp_path / "computes.npy")) == 3.0 and np.load(tmp_path / "fills.npy").shape == (4, 1 << 20)


def test_refuses_what_cannot_be_compared() -> None:
    one = Contestant("one", partial, (time.time,))
    with pytest.raises(ValueError, match="0 rounds of one; wanted one or more"):
        interleave([one], 0)
    with pytest.raises(ValueError, match="no name twice"):
        interleave([one, one], 1)


def test_threads_are_limited_inside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS[0], "7")
    monkeypatch.delenv(THREADS[1], raising=False)
    with thread_limit(3):
        assert [os.environ[name] for name in THREADS] == ["3", "3"]
    assert os.environ[THREADS[0]] == "7" and THREADS[1] not in os.environ


def test_environment_and_memory() -> None:
    facts = environment()
    assert facts["cpu"] and facts["cores"] >= 1 and facts["memory_gb"] > 0 and isinstance(facts["features"], list)
    assert 10 < peak_memory() < 1e5


def test_median() -> None:
    assert Timing("x", [3.0, 1.0, 2.0]).median == 2.0
