"""Measure what keeping the results of still pixels saves: a made film of ten seconds, with and without; writes JSON.

python docs/measure_reuse.py results/films/reuse.json

640 x 360 at 25 frames a second: a drawn page, still, before which a disc flies. As it was made, as H.264 leaves it, and
with a sensor's noise of one level. Each way of enlarging runs in turn, `ROUNDS` times; the fastest counts. The film
that is enlarged whole is the truth: "equal" is the share of result values that are the same, in 8 bits.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rendering import drawing, write_result

from bitlens.bench.turns import environment
from bitlens.data.video import open_movie
from bitlens.inference.images import enlarge
from bitlens.inference.reuse import Reuse
from bitlens.inference.starting import start
from bitlens.metrics import flicker

FRAMES, HEIGHT, WIDTH, ROUNDS = 250, 360, 640, 1
WAYS = {"whole frames": None, "equal pixels kept": 0.0, "within 2 levels kept": 2 / 255}


def film() -> np.ndarray:
    """Levels (t, h, w, 3): a drawn page, and a disc of 40 pixels that crosses it twice."""
    page = drawing(HEIGHT, WIDTH)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    made = np.repeat(page[None], FRAMES, 0)
    for index in range(FRAMES):
        x, y = WIDTH * (2 * index / FRAMES % 1), HEIGHT / 2 + 120 * np.sin(index / 12)
        made[index][(rows - y) ** 2 + (columns - x) ** 2 < 400] = (230, 60, 40)
    return made


def encoded(frames: np.ndarray) -> np.ndarray:
    """The film after H.264 at a usual quality."""
    import av

    with TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "20"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return np.stack([np.rint(255 * frame).astype(np.uint8) for frame in open_movie(path)])


def noisy(frames: np.ndarray) -> np.ndarray:
    """The film with noise of half a level, rounded: most values change by one level."""
    random = np.random.default_rng(0)
    noise = np.stack([random.normal(0, 0.5, frames.shape[1:]) for _ in frames])
    return np.rint(frames + noise).clip(0, 255).astype(np.uint8)


def measured(frames: np.ndarray, model: str) -> dict[str, dict[str, float]]:
    """Seconds, share kept, and how near the results are to those of whole frames, for each way."""
    started = start(model, "auto", "super-resolution")
    network, running = started.network, started.running

    def whole(frame: np.ndarray) -> np.ndarray:
        return enlarge(running, frame, "film")

    def run(frames: np.ndarray, still: float | None) -> tuple[float, float, np.ndarray]:
        many = network.radius + 1
        reuse = None if still is None else Reuse(whole, whole, scale=2, overlap=many, multiple=1, still=still)
        large, begun = [], time.perf_counter()
        for frame in frames:
            small = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32) / np.float32(255)
            found = (reuse or whole)(small)
            large.append(np.rint(255 * found.clip(0, 1)).astype(np.uint8))
        return time.perf_counter() - begun, 0.0 if reuse is None else reuse.kept, np.stack(large)

    run(frames[:3], 0.0)  # what is compiled once
    found: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        truth = None
        for way, still in WAYS.items():
            seconds, kept, large = run(frames, still)
            truth = large if truth is None else truth
            before = found.get(way, {}).get("seconds", float("inf"))
            grey, other = (each.mean(-1) / 255 for each in (large, truth))
            found[way] = {
                "seconds": min(before, seconds),
                "kept": kept,
                "equal": float((large == truth).mean()),
                "levels_apart": int(np.abs(large.astype(np.int16) - truth).max()),
                "flicker": flicker(grey, other) * 255,
            }
    return found


def main() -> None:
    (out,) = sys.argv[1:]
    frames, model = film(), "abpn-x2-w8a8"
    films = {"as it was made": frames, "after H.264": encoded(frames), "with noise": noisy(frames)}
    content = {
        "model": model,
        "size": [FRAMES, HEIGHT, WIDTH],
        "films": {name: measured(each, model) for name, each in films.items()},
        "environment": environment(),
    }
    write_result(Path(out), content)


if __name__ == "__main__":
    main()
