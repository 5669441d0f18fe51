"""Measure what scikit-image's filters make of damaged test images, each at its best strength; writes JSON.

python docs/measure_classical.py PHOTOGRAPHS results/restoration/classical.json       (pip install scikit-image)

The strength is chosen for each kind of damage on some of the photographs that training holds out, so the test images
choose nothing. Non-local means is told the noise's standard deviation.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rendering import write_result

from bitlens.data.crops import photographs
from bitlens.data.damage import damaged, parse
from bitlens.data.levels import to_float
from bitlens.data.pairs import load_pairs, read_picture
from bitlens.data.patches import held_out
from bitlens.metrics import psnr_rgb, psnr_y

DAMAGES, SETS, CHOSEN_ON = ("noise-25", "jpeg-10", "jpeg-40"), ("set5", "set14", "urban10"), 6
Filter = Callable[[np.ndarray], np.ndarray]


def filters(kind: str) -> dict[str, dict[float, Filter]]:
    """Each filter by name, with every strength that is tried for a kind of damage; images are (h, w, 3)."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    what, amount = parse(kind)
    sigma = amount / 255 if what == "noise" else 0.0
    means = [0.2 * sigma, 0.3 * sigma, 0.4 * sigma, 0.6 * sigma] if sigma else [0.01, 0.02, 0.03, 0.05]
    weights = [0.08, 0.1, 0.15] if sigma else [0.005, 0.01, 0.02, 0.04]
    patches = partial(denoise_nl_means, sigma=sigma, patch_size=5, patch_distance=6, fast_mode=True, channel_axis=-1)
    variation = partial(denoise_tv_chambolle, channel_axis=-1)
    return {
        "non-local means": {h: partial(patches, h=h) for h in means},
        "total variation": {weight: partial(variation, weight=weight) for weight in weights},
    }


def quality(kind: str, levels: np.ndarray, run: Filter) -> float:
    """PSNR of a damaged image (3, h, w) after a filter, as `bitlens evaluate` measures it."""
    given, truth = (to_float(each) for each in (damaged(levels, kind), levels))
    result = run(given.transpose(1, 2, 0)).transpose(2, 0, 1).astype(np.float32)
    return psnr_rgb(result, truth) if kind.startswith("noise") else psnr_y(result, truth, shave=0)


def main() -> None:
    folder, out = sys.argv[1:]
    rows: list[dict[str, Any]] = []
    photos = [read_picture(file) for file in held_out(photographs(folder))[1]][-CHOSEN_ON:]
    for kind in DAMAGES:
        best: dict[str, Filter] = {"as it came": np.asarray}
        strengths = {}
        for name, tried in filters(kind).items():
            strengths[name] = max(tried, key=lambda one: fmean(quality(kind, each, tried[one]) for each in photos))
            best[name] = tried[strengths[name]]
        for data in SETS:
            images = [read_picture(pair.high) for pair in load_pairs(data, 1)]
            found = {name: fmean(quality(kind, levels, run) for levels in images) for name, run in best.items()}
            rows.append({"data": f"{data}+{kind}", "psnr": found, "strength": strengths})
            print(rows[-1], flush=True)
    write_result(Path(out), {"rows": rows})


if __name__ == "__main__":
    main()
