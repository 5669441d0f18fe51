"""The kernels' tests again, built with AddressSanitizer and UndefinedBehaviorSanitizer; and nothing leaks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

MAKE_AND_DROP = """
import ctypes, sys
import numpy as np
import bitlens_kernels as bk
from bitlens_kernels.swin import Grid, Linear, Swin, SwinBlock

def linear(outputs, inputs):
    return Linear(grids[0], np.ones((outputs, inputs), np.int8), *np.ones((2, outputs), np.float32))

grids, norm = [Grid(0.1, 3, 15)] * 2, tuple(np.ones((2, 8), np.float32))
layers = linear(24, 8), linear(8, 8), linear(6, 8), linear(8, 6)
swin = Swin(2, 4, norm, norm, *layers, *[grids] * 4, 0.5, np.zeros((2, 16, 16), np.float32))
weights, codes = np.ones((20, 3, 3, 3, 20), np.int8), np.ones((2, 6, 6, 20), np.uint8)
for level in bk.levels():
    for method in bk.METHODS:
        options = dict(padding=(1, 1, 1), method=method, level=level)
        bk.Convolution(weights, largest=3, **options).totals(codes, threads=2)
        try:
            bk.Convolution(np.full((1, 1, 3, 3, 40_000), 127, np.int8), **options)
        except ValueError:
            pass
    SwinBlock(swin, level).bind(np.ones((1, 8, 8, 8), np.float32), threads=2)()
if "forget" in sys.argv:
    bk.Convolution(weights).handle = None
ctypes.CDLL(None).__lsan_do_recoverable_leak_check()
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Python runs the kernels built with both sanitizers."""
    if not all(map(shutil.which, ("cmake", "g++"))):
        pytest.skip("no cmake or g++: the sanitizers' build needs both")
    source, build = REPOSITORY / "kernels", tmp_path_factory.mktemp("sanitized")
    subprocess.run(
        ["cmake", "-S", source, "-B", build, "-DBITLENS_SANITIZE=ON", "-DCMAKE_CXX_COMPILER=g++"], check=True
    )
    subprocess.run(["cmake", "--build", build, "--parallel", "2"], check=True)
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # the interpreter's own leaks would drown ours
        "OMP_WAIT_POLICY": "passive",
        "BITLENS_KERNELS_LIBRARY": str(build / "_kernels.so"),
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.mark.slow
@pytest.mark.kernels
def test_no_sanitizer_complains(sanitized: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/kernels"]
    run = subprocess.run(command, cwd=REPOSITORY, env=sanitized, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout, run.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.kernels
def test_nothing_leaks(sanitized: dict[str, str]) -> None:
    """No block of memory that our code took is lost; one that is dropped on purpose is found."""
    environment = sanitized | {"ASAN_OPTIONS": "detect_leaks=1:exitcode=0", "PYTHONMALLOC": "malloc"}
    found = {}
    for what in ("drop", "forget"):
        command = [sys.executable, "-c", MAKE_AND_DROP, what]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-8000:]
        if "LeakSanitizer has encountered a fatal error" in run.stderr:
            pytest.skip("this system does not let LeakSanitizer look at a process")
        found[what] = run.stderr
    assert "kernels/src" in found["forget"] and "kernels/src" not in found["drop"], found["drop"][-8000:]
