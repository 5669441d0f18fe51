"""What every test shares: where the large data lies, what is skipped, and the same seed and threads for each test."""

import importlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from commands import Commands
from hypothesis import settings

from bitlens.engine.openvino import adds_in_16_bits

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
# The first call of a torch operator is slow. By default the same examples every time; `make slow` draws others.
settings.register_profile("bitlens", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)


@cache
def without_kernels() -> str | None:
    """Why the native kernels cannot be used; None: they can."""
    try:
        importlib.import_module("bitlens_kernels").best_level()
    except ImportError as error:
        return f"the kernels are not built: {error}"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws new examples where slow tests were asked for."""
    settings.load_profile("random" if config.getoption("markexpr") == "slow" else "bitlens")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `kernels`, with the reason, where there are none."""
    if item.get_closest_marker("kernels") and (reason := without_kernels()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def vnni() -> bool:
    """Whether OpenVINO runs layers of 8 bits in integers here; else they are float."""
    return not adds_in_16_bits()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same state of torch's global generator: of BITLENS_SEED, or 0."""
    torch.manual_seed(int(os.environ.get("BITLENS_SEED", "0")))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of scenes, masks and weights: BITLENS_DATA, or ../shared/data seen from the checkout."""
    root = Path(os.environ.get("BITLENS_DATA") or REPOSITORY.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no data at {root}: set BITLENS_DATA to the folder that holds it")
    return root


@pytest.fixture(scope="session")
def golden_root(data_root: Path) -> Path:
    """The folder of golden values recorded from official implementations: `golden` beside the data."""
    root = data_root.parent / "golden"
    if not root.is_dir():
        pytest.skip(f"no golden values at {root}: they are looked for beside the folder in BITLENS_DATA")
    return root


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """What runs command lines apart."""
    if sys.platform != "linux":
        pytest.skip("forks and their memory are watched as Linux tells them")
    running = Commands(tmp_path_factory.mktemp("commands"))
    assert running.threads == 1
    yield running
    running.close()
