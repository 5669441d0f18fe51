"""The kernels and the engines on an older CPU: AVX512 switched off, as far as each library lets itself be told.

The whole suite runs so by `make avx2`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def switched_off() -> dict[str, str]:
    """The environment variables of `make avx2`, read off the Makefile."""
    line = re.search(r"^AVX2 := (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert line is not None
    return dict(setting.split("=", 1) for setting in line[1].split())


def test_the_libraries_obey() -> None:
    """torch computes without AVX512, our kernels know no level beyond AVX2, and OpenVINO's engine no bf16."""
    code = (
        "import torch; print('torch', torch.backends.cpu.get_cpu_capability())\n"
        "from bitlens.engine.openvino import computes_bf16\n"
        "from bitlens.engine.runtime import openvino\n"
        "print('bf16', computes_bf16(openvino().Core()))\n"
        "try:\n"
        "    import bitlens_kernels as bk; print('kernels', bk.levels()[-1])\n"
        "except (ImportError, ValueError) as error:\n"
        "    print('kernels', error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | switched_off(), cwd=REPOSITORY, capture_output=True, text=True
    )
    said = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert run.returncode == 0, run.stderr
    assert "AVX512" not in said["torch"] and said["bf16"] == "False" and not said["kernels"].startswith("avx512")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["kernels", "engine"])
def test_it_passes_without_avx512(folder: str, tmp_path: Path) -> None:
    environment = os.environ | switched_off() | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"tests/{folder}"]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    assert " passed" in run.stdout, run.stdout[-2000:]
