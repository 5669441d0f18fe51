"""What `evaluate` and `upscale` do with super-resolution networks: enlarge pictures, and score them."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def scale_of(network: Any) -> int | None:
    """How many times a network enlarges pictures; None for one that reconstructs video."""
    return getattr(network, "scale", None)


def enlarge(network: Callable[..., Any], picture: "np.ndarray", label: str) -> "np.ndarray":
    """Run a super-resolution network on one picture (3, h, w) in [0, 1]: (3, scale h, scale w), not clipped.

    Raises:
        ValueError: the network returned NaN or infinity.
        MemoryError: the network did not fit.
    """
    import torch

    try:
        with torch.inference_mode():
            large = network(torch.from_numpy(picture)[None])[0]
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        height, width = picture.shape[1:]
        raise MemoryError(
            f"{label} ran out of memory on {height}x{width} pixels; wanted a smaller picture; "
            "use bitlens upscale with --memory-mb, or crop it"
        ) from error
    if not bool(large.isfinite().all()):
        raise ValueError(
            f"{label}: the network returned NaN or infinite values; wanted finite numbers; the checkpoint is damaged"
        )
    return large.numpy()


def evaluate_pictures(models: list[tuple[Any, Any]], data: str, engine: str, ssim: bool) -> list[dict[str, Any]]:
    """Scores of every picture of a test set, their average, and all settings: one result for each model.

    Args:
        models: each checkpoint's description and its network.
        data: as `load_pairs` takes it.
        engine: as `choose_engine` takes it.
        ssim: compute SSIM too.

    Raises:
        ValueError: a network of another kind among them, an unknown test set, or two pictures of one name.
    """
    for about, network in models:
        if scale_of(network) is None:
            raise ValueError(
                f"{about.name} reconstructs video, other models enlarge pictures; wanted one kind; evaluate them apart"
            )
    results = [evaluate_one(about, network, data, engine, ssim) for about, network in models]
    if len(models) == 1:
        return results
    return [{"model": result["settings"]["model"], **result} for result in results]


def evaluate_one(about: Any, network: Any, data: str, engine: str, ssim: bool) -> dict[str, Any]:
    """One model's result, as it is written to the file."""
    from statistics import fmean

    from bitlens.checkpoint import weights_sha256
    from bitlens.cli.shared import describe_run, keep_freed_memory, progress
    from bitlens.data.pairs import load_pairs
    from bitlens.engine.registry import choose_engine
    from bitlens.metrics import psnr_y, ssim_y

    keep_freed_memory()
    scale = scale_of(network)
    assert scale is not None
    pairs = load_pairs(data, scale)
    running, how = choose_engine(network, engine)
    scores: dict[str, Any] = {}
    seconds = pixels = 0.0
    with progress("pictures") as bar:
        for pair in bar.track(pairs, description=about.name):
            if pair.name in scores:
                raise ValueError(f"{pair.high}: a second picture '{pair.name}'; wanted one of each name; rename one")
            low, high = pair.read()
            start = time.perf_counter()
            large = enlarge(running, low, f"{about.name}: {pair.name}")
            seconds, pixels = seconds + time.perf_counter() - start, pixels + low[0].size
            psnr = psnr_y(large, high, shave=scale)
            scores[pair.name] = {"psnr": psnr, "ssim": ssim_y(large, high, shave=scale) if ssim else None}
    average: dict[str, Any] = {"psnr": fmean(one["psnr"] for one in scores.values())}
    average["ssim"] = fmean(one["ssim"] for one in scores.values()) if ssim else None
    stored = all(pair.low is not None for pair in pairs)
    settings = {
        "model": about.name,
        "checkpoint": None if about.path is None else about.path.name,
        "sha256": None if about.path is None else weights_sha256(about.path),
        "data": data,
        "scale": scale,
        "low_resolution": "stored with the pictures" if stored else "made by Downsample.shrink_levels",
        "psnr": f"psnr_y: RGB rounded to 8 bits, luma of BT.601, border of {scale} shaved, mean over pictures",
        "ssim": "ssim_y: as psnr_y, Gaussian window 11x11, sigma 1.5" if ssim else None,
        "seconds_per_megapixel": seconds / pixels * 1e6,
        "engine": how,
        **describe_run(),
    }
    return {"scenes": scores, "average": average, "settings": settings}
