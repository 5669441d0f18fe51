"""What was compiled runs again without torch and without the network, and computes the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.engine.openvino import Engine
from bitlens.engine.runtime import Runtime, code_and_machine, initial_estimate, user_cache
from bitlens.networks import efficientsci
from bitlens.networks.efficientsci import EfficientSCI

SIZE = (3, 16, 18)


def capture(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    mask = (draw.random((1, *SIZE)) < 0.5).astype(np.float32)
    return draw.random((2, *SIZE[1:])).astype(np.float32), mask


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(EfficientSCI(8, 1, 2).eval(), precision="f32", threads=1, cache=tmp_path, check=False)


def test_estimate_is_the_networks() -> None:
    measurement, mask = capture()
    mask[:, :, :2] = 0.0  # pixels that saw nothing
    wanted = efficientsci.initial_estimate(torch.from_numpy(measurement), torch.from_numpy(mask))
    assert np.array_equal(initial_estimate(measurement, mask), wanted.numpy())


def test_recall(engine: Engine, tmp_path: Path) -> None:
    data = capture()
    wanted = engine(*data)
    engine.runtime.remember("key", "float, f32")
    recalled = Runtime.recall("key", tmp_path, SIZE)
    assert recalled is not None
    runtime, note = recalled
    assert note == "float, f32" and np.array_equal(runtime(*data), wanted)
    assert Runtime.recall("key", tmp_path, (3, 15, 17)) is not None  # padded to the size that is there
    with pytest.raises(LookupError, match="no compiled model of 3x32x32"):
        runtime.compile(3, 32, 32)


def test_nothing_is_recalled_that_is_not_whole(engine: Engine, tmp_path: Path) -> None:
    engine(*capture())
    engine.runtime.remember("key", "")
    assert Runtime.recall("other", tmp_path, SIZE) is None and Runtime.recall("key", tmp_path, (3, 64, 64)) is None
    record, blob = tmp_path / "key-runtime.json", engine.runtime.file(SIZE)
    for damage in ("{", "[]", json.dumps({"identity": "x"})):
        record.write_text(damage)
        assert Runtime.recall("key", tmp_path, SIZE) is None
    engine.runtime.remember("key", "")
    blob.write_bytes(blob.read_bytes()[:-9])
    assert Runtime.recall("key", tmp_path, SIZE) is None


def test_runs_without_torch(engine: Engine, tmp_path: Path) -> None:
    measurement, mask = capture()
    np.savez(tmp_path / "data.npz", measurement=measurement, mask=mask, video=engine(measurement, mask))
    engine.runtime.remember("key", "")
    code = f"""
import sys, pathlib, numpy as np
from bitlens.engine.runtime import Runtime
folder = pathlib.Path({str(tmp_path)!r})
runtime, _ = Runtime.recall("key", folder, {SIZE})
data = np.load(folder / "data.npz")
assert np.array_equal(runtime(data["measurement"], data["mask"]), data["video"])
print("torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def test_code_and_machine_is_one_hash() -> None:
    assert code_and_machine() == code_and_machine() and len(code_and_machine()) == 64


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("openvino") == tmp_path / "bitlens" / "openvino"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache("onnx") == Path.home() / ".cache" / "bitlens" / "onnx"
