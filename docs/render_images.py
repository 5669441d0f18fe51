"""Draw docs/images.png: a drawn page made small and enlarged again, made a JPEG and noisy and restored, in fewer bits.

python docs/render_images.py            draw it
python docs/render_images.py --check    exit 1 if the networks are others than those that it shows
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rendering import command, drawing, drawn_fingerprint

from bitlens import checkpoint

FINGERPRINT = "bitlens-images"
ENLARGING = ("abpn-x2", "abpn-x2-w8a8", "abpn-x2-w4a4")
RESTORING = ("ffdnet", "ffdnet-w8a8", "ffdnet-w4a4")
CUT = np.s_[70:190, 150:300]
"""Rows and columns that are shown, `ZOOM` times as large."""
ZOOM, ROOM = 2, 18


def render(root: Path, check: bool = False) -> list[Path]:
    """Draw the picture if its networks are others than those it shows; the picture, if it was (or is) out of date."""
    picture = root / "docs" / "images.png"
    shown = [name for name in (*ENLARGING, *RESTORING) if name in checkpoint.shipped()]
    fingerprint = " ".join(checkpoint.weights_sha256(checkpoint.shipped()[name])[:12] for name in shown)
    if drawn_fingerprint(picture, FINGERPRINT) == fingerprint:
        return []
    if not check:
        draw(picture, fingerprint)
    return [picture]


def draw(path: Path, fingerprint: str) -> None:
    """All rows, as one PNG that says what it shows."""
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    page = drawing()
    rows = [enlarged(page), restored(page, "jpeg-10"), restored(page, "noise-25")]
    height, width = (ZOOM * (part.stop - part.start) for part in CUT)
    sheet = Image.new("RGB", (len(rows[0]) * (width + 4) - 4, len(rows) * (height + ROOM)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for down, row in enumerate(rows):
        for right, (words, levels) in enumerate(row):
            part = Image.fromarray(np.ascontiguousarray(levels[CUT]))
            sheet.paste(
                part.resize((width, height), Image.Resampling.NEAREST), (right * (width + 4), down * (height + ROOM))
            )
            pen.text((right * (width + 4) + 2, (down + 1) * (height + ROOM) - ROOM + 2), words, "black", font)
    about = PngInfo()
    about.add_text(FINGERPRINT, fingerprint)
    sheet.save(path, pnginfo=about, optimize=True)


def enlarged(page: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The page, what becomes of it at half its size and enlarged by bicubic interpolation, and by each network."""
    import torch
    from PIL import Image

    from bitlens import upscale
    from bitlens.operators import Downsample

    small = Downsample(2).shrink_levels(torch.from_numpy(page.transpose(2, 0, 1).copy())[None])[0].numpy()
    small = np.ascontiguousarray(small.transpose(1, 2, 0))
    size = page.shape[1], page.shape[0]
    bicubic = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
    found = [(name, upscale(small, name).levels) for name in ENLARGING]
    return [("original", page), (captioned("half the size, bicubic", bicubic, page), bicubic), *named(found, page)]


def restored(page: np.ndarray, kind: str) -> list[tuple[str, np.ndarray]]:
    """The page, the damaged one, and what each network makes of that."""
    from bitlens import restore
    from bitlens.data.damage import damaged, parse

    given = np.ascontiguousarray(damaged(page.transpose(2, 0, 1), kind).transpose(1, 2, 0))
    what, amount = parse(kind)
    words = f"JPEG of quality {amount}" if what == "jpeg" else f"noise of {amount} levels"
    found = [(name, restore(given, name).levels) for name in RESTORING]
    return [("original", page), (captioned(words, given, page), given), *named(found, page)]


def named(found: list[tuple[str, Any]], page: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Results under their networks' names and PSNR."""
    return [(captioned(name, levels, page), levels) for name, levels in found]


def captioned(name: str, levels: np.ndarray, page: np.ndarray) -> str:
    """A name, and PSNR over all colours."""
    from bitlens.data.levels import to_float
    from bitlens.metrics import psnr_rgb

    image, truth = (to_float(each).transpose(2, 0, 1) for each in (levels, page))
    return f"{name}: {psnr_rgb(image, truth):.1f} dB"


if __name__ == "__main__":
    sys.exit(command("render_images", __doc__ or "", render))
