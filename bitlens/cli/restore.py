"""`bitlens restore`: take noise and what JPEG left behind out of images and films, in tiles that fit into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bitlens.cli.of_images import OfImages


@dataclass(frozen=True)
class Restore(OfImages):
    """Take noise, and the blocks and rings that JPEG leaves, out of a picture, all pictures of a folder, or a video.

    The network that ships is told nothing: it finds out by itself how much is to be taken away. Size, orientation,
    transparency, 16 bits, colour profile, and of a video times and sound are kept, as by `bitlens upscale`; so are the
    ways in which folders, several files and clusters are treated.

    Example:
        bitlens restore photo.jpg
        bitlens restore night.mp4 --out night-restored.mp4
        bitlens restore photos/ --out better/ --recursive
        bitlens restore scanned-page.jpg --faithful
    """

    faithful: bool = False
    """Of a .jpg: hold the result to what the file itself says of the image that was compressed. Nearer to it, above all
    at high quality; but noise that was there before is part of what was compressed, and stays."""

    task: ClassVar[str] = "restoration"
    done: ClassVar[str] = "restored"

    def more(self) -> dict[str, Any]:
        return {"faithful": self.faithful}

    def name_for(self, source: Path, model: str) -> str:
        """The image's name, and that it was restored."""
        return f"{source.stem}-restored.png"
