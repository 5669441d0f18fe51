"""The kernels' tests again, built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.kernels
def test_no_sanitizer_complains(tmp_path: Path):
    if not all(map(shutil.which, ("cmake", "g++"))):
        pytest.skip("no cmake or g++: the sanitizers' build needs both")
    source, build = REPOSITORY / "kernels", tmp_path / "build"
    subprocess.run(
        ["cmake", "-S", source, "-B", build, "-DBITLENS_SANITIZE=ON", "-DCMAKE_CXX_COMPILER=g++"], check=True
    )
    subprocess.run(["cmake", "--build", build, "--parallel", "2"], check=True)
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # the interpreter's own leaks would drown ours
        "OMP_WAIT_POLICY": "passive",
        "BITLENS_KERNELS_LIBRARY": str(build / "_kernels.so"),
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/kernels"]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout, run.stdout[-2000:]
