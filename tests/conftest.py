"""What every test shares: where the large data lies, and the same seed and threads for each test."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
settings.register_profile("bitlens", deadline=None)  # the first call of a torch operator is slow
settings.load_profile("bitlens")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same state of torch's global generator."""
    torch.manual_seed(0)


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
