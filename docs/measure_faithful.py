"""Measure how narrow bounds serve best that hold a restored JPEG to its file, on held-out photographs; writes JSON.

python docs/measure_faithful.py ffdnet PHOTOGRAPHS results/restoration/bounds.json

`data.jpeg.NARROW` was chosen by it: the test images choose nothing.
"""

import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from rendering import write_result

from bitlens import checkpoint
from bitlens.data import jpeg
from bitlens.data.crops import photographs
from bitlens.data.damage import compressed, steps_of
from bitlens.data.levels import to_float
from bitlens.data.pairs import read_picture
from bitlens.data.patches import held_out
from bitlens.inference.images import enlarge
from bitlens.metrics import psnr_y

QUALITIES, BOUNDS, SIDE = (10, 40, 90), (0.5, 0.4, 0.3, 0.2), 384


def main() -> None:
    model, folder, out = sys.argv[1:]
    network = checkpoint.load(model)
    photos = [read_picture(file)[:, :SIDE, :SIDE] for file in held_out(photographs(folder))[1]]
    rows = []
    for quality in QUALITIES:
        free, held = [], {bound: [] for bound in BOUNDS}
        for levels in photos:
            truth, given = to_float(levels), compressed(levels, quality)
            found = enlarge(network, to_float(given), model)
            free.append(psnr_y(found, truth, shave=0))
            for bound in BOUNDS:
                jpeg.NARROW = bound
                held[bound].append(
                    psnr_y(np.concatenate(list(steps_of(quality).hold([found], given)), 1), truth, shave=0)
                )
        rows.append(
            {"quality": quality, "free": fmean(free), "held": {str(b): fmean(each) for b, each in held.items()}}
        )
        print(rows[-1], flush=True)
    content = {"model": model, "photographs": len(photos), "side": SIDE, "rows": rows}
    write_result(Path(out), content)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
