"""A checkpoint on OpenVINO, started as quickly as can be: what ran before is found without torch and the network."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitlens import checkpoint
from bitlens.engine.runtime import Compiled, Size, code_and_machine, user_cache

Running = Callable[..., np.ndarray]
"""Measurement (b, h, w) and mask (1 or b, t, h, w) -> video (b, c, t, h, w); or image (b, 3, h, w) -> a larger one."""


def start(
    model: str | os.PathLike[str],
    size: Size,
    threads: int | None = None,
    precision: str = "auto",
    cache: Path | None = None,
) -> tuple[Running, str]:
    """What runs a checkpoint on OpenVINO, and a line that says in what.

    The first start builds, checks and compiles. Later ones recall that, for the same file, threads and precision, on
    the same machine, with the same code.

    Args:
        model: name or path of a checkpoint.
        size: (frames, height, width) of a video, (height, width) of a picture.
        threads, precision, cache: as `Engine` takes them.

    Raises:
        TypeError, ValueError: as `Engine`.
    """
    folder = user_cache("openvino") if cache is None else cache
    facts = precision, threads, code_and_machine()
    key = hashlib.sha256(checkpoint.find(model).read_bytes() + repr(facts).encode()).hexdigest()[:32]
    recalled = Compiled.recall(key, folder, size)
    if recalled is not None:
        return recalled
    from bitlens.engine.openvino import Engine
    from bitlens.engine.registry import describe

    engine = Engine(checkpoint.load(model), precision=precision, threads=threads, cache=folder)
    note = describe(engine)
    engine.runtime.remember(key, note)
    return engine.runtime, note
