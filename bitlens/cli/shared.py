"""What several verbs share: checks of flags, and outputs that are whole or not there."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitlens.data.recording import Crop


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


PAGES = (".html", ".htm")
"""How the names of pages end."""


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
    from bitlens.data.writers import check_target
    from bitlens.files import atomic_folder, atomic_path

    suffix = check_target(out)
    if not suffix:
        with atomic_folder(out) as temporary:
            yield f"{temporary}/"
        return
    with (atomic_folder if suffix == ZARR else atomic_path)(out) as temporary:
        yield str(temporary)
