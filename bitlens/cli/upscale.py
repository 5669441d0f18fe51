"""`bitlens upscale`: enlarge images and films with a super-resolution network, in tiles that fit into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bitlens.cli.of_images import OfImages


@dataclass(frozen=True)
class Upscale(OfImages):
    """Enlarge a picture, all pictures of a folder, or a video, by the scale of the network.

    What does not fit into --memory-mb as a whole is cut into tiles, which overlap. A network that sees no farther than
    48 pixels (PAN, EDSR) gives exactly what it gives for the whole picture; the tiles of others are blended.

    What a file says of itself is kept: orientation, transparency (enlarged beside the colours), 16 bits, colour profile
    and resolution; of a video times, sound, the shape of pixels, 10 bits and colours. What a kind of file cannot hold
    is said.

    A folder, several files or 'patterns*' in quotes become one result each in the folder --out, whole or not at all.
    What is there from an earlier run, of the same files, network and settings, is skipped; what is broken is named in
    the end, and the others are made.

    Example:
        bitlens upscale photo.jpg
        bitlens upscale photo.jpg --model ngswin-x2.safetensors --out photo-x2.png
        bitlens upscale film.mp4 --model imdn-x2.safetensors --out film-x2.mp4
        bitlens upscale photos/ --model imdn-x2.safetensors --out large/ --recursive --cluster
    """

    task: ClassVar[str] = "super-resolution"
    done: ClassVar[str] = "enlarged"

    scale: int | None = None
    """How many times to enlarge, as the network must. Default: as it does."""

    def check_network(self) -> None:
        """Refuse a network that enlarges another number of times than --scale.

        Raises:
            ValueError: it does.
        """
        from bitlens import checkpoint

        if self.scale is not None and self.scale != (own := checkpoint.describe(self.model).config["scale"]):
            raise ValueError(
                f"--scale {self.scale}, and {self.model} enlarges {own} times; wanted one that does; name it with "
                "--model, or leave --scale out"
            )

    def default_model(self) -> str:
        """The default, or with --scale a shipped one that enlarges so many times."""
        from bitlens import checkpoint

        return checkpoint.default(self.task, self.scale)

    def name_for(self, source: Path, model: str) -> str:
        """The image's name with how many times it was enlarged."""
        from bitlens import checkpoint

        return f"{source.stem}-x{checkpoint.describe(model).config['scale']}.png"
