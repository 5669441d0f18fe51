"""What several verbs share: checked outputs, a network run with progress, scores, the facts of a run."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

    from bitlens.cli.tiling import Tiling
    from bitlens.data.recording import Crop
    from bitlens.data.stacks import Stack

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
"""Parameters of glibc's mallopt, from malloc.h."""


def parse_crop(text: str | None) -> "Crop | None":
    """`"top,left,height,width"` as four whole numbers."""
    if text is None:
        return None
    try:
        top, left, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--crop {text}; wanted four whole numbers top,left,height,width; for example --crop 0,0,256,256"
        ) from None
    return top, left, height, width


def check_seed(seed: int) -> int:
    """Return the seed, refusing what the generators do not take."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}; wanted a whole number from 0 to 2**63 - 1; choose another")
    return seed


def check_positive(flag: str, value: float | int) -> None:
    """Refuse zero, negative numbers, NaN and infinity."""
    if not 0 < value < math.inf:
        raise ValueError(f"{flag} {value:g}; wanted a finite number above 0; change it")


def check_other(out: "str | Path", *sources: "str | Path") -> None:
    """Refuse to write over what is read."""
    for source in sources:
        if Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
            raise ValueError(f"--out {out} is {source}, which is read; wanted another place; choose another name")


@contextmanager
def output_file(path: Path | None, *suffixes: str) -> Iterator[Path | None]:
    """Yield a temporary path that becomes `path` in the end; a bad place is refused before the work begins.

    None passes through: the verb was asked for no file.
    """
    if path is None:
        yield None
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path}; wanted a name that ends in {' or '.join(suffixes)}; change it")
    from bitlens.files import atomic_path

    with atomic_path(path) as temporary:
        yield temporary


@contextmanager
def output_video(out: str) -> Iterator[str]:
    """As `output_file`, for any target of `write_video`: a file, or a folder of frames."""
    from bitlens.data.chunks import ZARR
    from bitlens.files import atomic_folder, atomic_path

    suffix = check_video(out)
    if not suffix:
        with atomic_folder(out) as temporary:
            yield f"{temporary}/"
        return
    with (atomic_folder if suffix == ZARR else atomic_path)(out) as temporary:
        yield str(temporary)


def check_video(out: str) -> str:
    """The suffix of a target of `write_video`, small; nothing for a folder.

    Raises:
        ValueError: it cannot be written here.
    """
    from importlib.util import find_spec

    from bitlens.data.chunks import ZARR, import_zarr
    from bitlens.data.writers import WRITE_SUFFIXES

    path = Path(out)
    suffix = "" if out.endswith("/") else path.suffix.lower()
    if not suffix:
        return suffix
    if suffix not in WRITE_SUFFIXES:
        raise ValueError(
            f"cannot write a video to {path}; wanted {', '.join(WRITE_SUFFIXES)}, or a folder for PNG "
            "frames; change the suffix"
        )
    if suffix in (".mp4", ".avi", ".mkv") and find_spec("av") is None:
        raise ValueError(
            f"{path} is a movie and PyAV is not installed; wanted a writer for it; run pip install "
            "'bitlens[video]', or use .gif, .tif, .npz or a folder of PNG frames"
        )
    if suffix == ZARR:
        import_zarr(path)
    return suffix


def reconstruct(
    network: Callable[..., Any], measurement: "np.ndarray", mask: "np.ndarray", label: str
) -> tuple["np.ndarray", list[float]]:
    """Run the network on measurements (n, h, w), one at a time, under a progress bar.

    Returns:
        (video, seconds): (n t, h, w), or (n t, h, w, 3) in colour, not clipped; the time of each measurement.

    Raises:
        ValueError, MemoryError: as `reconstructions`.
    """
    import numpy as np

    videos, seconds = zip(*reconstructions(network, measurement, mask, label), strict=True)
    return np.concatenate(videos), list(seconds)


def reconstructions(
    network: Callable[..., Any],
    measurements: "np.ndarray | Stack",
    mask: "np.ndarray",
    label: str,
    tiling: "Tiling | None" = None,
) -> Iterator[tuple["np.ndarray", float]]:
    """Run the network on measurements (h, w) one after the other, under a progress bar; no more than one is held.

    Videos that cannot be right are said in the end, as a remark (`CaptureWatch`).

    Yields:
        (video, seconds) for each: (t, h, w), or (t, h, w, 3) in colour, not clipped.

    Raises:
        ValueError: the network returned NaN, infinity or another shape.
        MemoryError: the network did not fit.
    """
    import numpy as np
    import torch

    from bitlens.cli.plausible import CaptureWatch

    tiles = 1 if tiling is None else tiling.count
    bar = progress("measurements" if tiles == 1 else f"tiles, {tiles} a measurement")
    keep_freed_memory()
    watch = CaptureWatch(label)
    masks = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None]  # 1 t h w
    with bar:
        task = bar.add_task(label, total=len(measurements) * tiles)
        for index, one in enumerate(measurements):
            start = time.perf_counter()
            data = torch.from_numpy(np.ascontiguousarray(one, np.float32))[None], masks
            with torch.inference_mode():
                video = _run(network, data, label, tiling, lambda *_: bar.advance(task))  # c t h w
            if tuple(video.shape[1:]) != mask.shape:
                raise ValueError(
                    f"{label} returned frames of shape {tuple(video.shape[1:])}; wanted {mask.shape}; "
                    "this checkpoint does not fit the mask"
                )
            if not bool(video.isfinite().all()):
                raise ValueError(
                    f"{label} returned NaN or infinite values for measurement {index}; wanted finite "
                    "numbers; the checkpoint is damaged, or the measurement's scale is far off (--gain)"
                )
            spent, frames = time.perf_counter() - start, video.permute(1, 2, 3, 0).squeeze(-1).numpy()
            watch.see(one, mask, frames)
            yield frames, spent  # t h w, or t h w 3
    watch.remark()


def _run(
    network: Callable[..., Any],
    data: tuple[Any, Any],
    label: str,
    tiling: "Tiling | None",
    on_tile: Callable[[int, int], None],
) -> Any:
    """The video (c, t, h, w) of one measurement."""
    try:
        if tiling is not None:
            return tiling.run(network, *data, on_tile)[0]
        video = network(*data)[0]
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        height, width = data[0].shape[-2:]
        raise MemoryError(
            f"{label} ran out of memory on {height}x{width} pixels; wanted a smaller "
            "picture; cut it with --crop top,left,height,width"
        ) from error
    on_tile(1, 1)
    return video


QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Show no bars: there is one for the whole already, or this is a worker."""
    token = QUIET.set(True)
    try:
        yield
    finally:
        QUIET.reset(token)


def progress(unit: str) -> "Progress":
    """A bar that counts units, on stderr, gone when it is done; nothing where nobody looks, and within `quietly`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeRemainingColumn(), console=(console := Console(stderr=True)), transient=True,
        disable=QUIET.get() or not console.is_terminal,
    )  # fmt: skip


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for the next tensor, where it would return them to the kernel.

    Measured on EfficientSCI-T, 256x256x8, one thread: 5.5 -> 5.3 s in float, 14.8 -> 10.4 s with simulated
    4 bits.
    """
    if sys.platform == "linux":
        import ctypes

        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def score(video: "np.ndarray", reference: "np.ndarray", ssim: bool = True) -> dict[str, float | None]:
    """`{"psnr": dB, "ssim": ...}` in video SCI's convention; ssim None where it was not asked for."""
    from bitlens.metrics import psnr_sci, ssim_sci

    if video.ndim != 3:
        raise ValueError(
            f"a colour video {video.shape} came; wanted grey frames to compare with a grey reference; "
            "choose a grey network"
        )
    return {"psnr": psnr_sci(video, reference), "ssim": ssim_sci(video, reference) if ssim else None}


def describe_run() -> dict[str, Any]:
    """Versions, threads, date and git revision: what every result file says about how it was made."""
    import torch

    from bitlens import __version__

    return {
        "bitlens": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "git_revision": _git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_revision() -> str | None:
    """The commit of the checkout that this code runs from, `+` where it was changed; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", os.fspath(root), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
