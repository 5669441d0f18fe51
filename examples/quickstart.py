"""The newcomer's path: a made scene, the one coded picture a camera takes of it, and the video rebuilt from that.

python examples/quickstart.py                      256 x 256 pixels, writes demo/quickstart.png
python examples/quickstart.py 64 small.png         64 x 64 pixels, in a moment
"""

import sys

import torch

import bitlens
from bitlens.checkpoint import default
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.metrics import psnr_sci
from bitlens.report import Panel, exposed, write_contact_sheet


def main(size: int = 256, picture: str = "demo/quickstart.png") -> float:
    """Rebuild 8 frames of size x size from one picture; return the PSNR in dB."""
    frames = 8
    video = torch.from_numpy(high_speed_scene(seed=0, frames=frames, height=size, width=size))  # t h w
    mask = torch.from_numpy(random_mask(frames, size, size, generator=0))  # t h w, half of the pixels open

    camera = bitlens.VideoSCI(mask)
    measurement = camera.A(video[None, None])  # 1 h w: all that the camera delivers

    name = default("video-sci")  # what `bitlens reconstruct` takes, too
    network = bitlens.load(name)
    with torch.inference_mode():
        rebuilt = network(measurement, mask[None])[0, 0]  # t h w

    psnr = psnr_sci(rebuilt, video)
    seen = Panel("measurement", "all that the camera delivers", exposed(measurement.numpy(), frames))
    shown = [Panel(name, f"{psnr:.2f} dB", rebuilt.numpy()), Panel("truth", "the made scene", video.numpy())]
    write_contact_sheet(picture, seen, shown)
    print(f"{name}: {psnr:.2f} dB from one {size} x {size} picture; look at {picture}")
    return psnr


if __name__ == "__main__":
    given = dict(zip(("size", "picture"), sys.argv[1:], strict=False))
    main(int(given.get("size", 256)), given.get("picture", "demo/quickstart.png"))
