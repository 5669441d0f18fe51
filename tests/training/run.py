"""A small training run as a program of its own, for tests that kill it: run.py FOLDER SETTINGS SECONDS.

Prints each finished step, after which it waits so many seconds, and writes the final weights to FOLDER/final.pt.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bitlens.data.clips import Clips, ClipSampler
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI, initialize_identity
from bitlens.training.loop import train, validation_batches
from bitlens.training.settings import Training


def main(folder: Path, given: dict, seconds: float = 0.0) -> str:
    """How and where the run ended."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = dict(given)
    quantized, validated = given.pop("quantized", False), given.pop("validated", False)
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 24 * 24).reshape(24, 24)
    videos = [np.stack([np.roll(ramp, 3 * t + k, axis=1) for t in range(10)]).astype(np.uint8) for k in range(2)]
    noise = [random.integers(0, 40, video.shape, dtype=np.uint8) for video in videos]
    clips = Clips([v + n for v, n in zip(videos, noise, strict=True)], ["a", "b"])
    sampler = ClipSampler(clips, frames=4, crop=8, batch=2, seed=1)
    network: torch.nn.Module = EfficientSCI(8, 1, 2)
    initialize_identity(network)
    if quantized:
        batches = [(y, mask) for _, mask, y in validation_batches(sampler, 1)]
        network, _ = quantize(network, "direct", batches, bits=4)

    def on_step(step: int) -> None:
        print(step, flush=True)
        time.sleep(seconds)

    result = train(
        network,
        sampler,
        Training(**given),
        folder,
        validation={"clips": validation_batches(sampler, 1)} if validated else None,
        on_step=on_step,
    )
    if result.writes:
        torch.save(network.state_dict(), folder / "final.pt")
    return f"{result.reason} {result.step}"


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])), flush=True)
