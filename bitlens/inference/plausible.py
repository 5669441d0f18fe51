"""Looks at what networks return, and says what cannot be right: far out of range, flat, no answer, in pieces."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FAR = 1.0
"""How far beyond [0, 1] a result may go before it is said. Sound networks overshoot by some tenths at sharp edges."""

FLAT = 0.01
"""A result that spans less than this, of a picture that spans ten times as much, is said to be flat."""

UNEXPLAINED = 0.5
"""A video whose own measurement differs from the camera's by more than this share of it is said to be no answer to it.
Measured on a made scene of 96x96x8 with binary, sparse and real-valued masks, at half to twice the right scale: 0.00
GAP-TV, up to 0.06 DUN at 8 and at 2 bits, up to 0.22 EfficientSCI-T, 0.26 at 2 bits and twice the scale."""

FAR_VIDEO = 4.0
"""How far beyond [0, 1] a video may go: at twice the right scale sound ones reach 4 (GAP-TV, as above)."""

APART, APART_BLENDED = 1 / 255, 0.02
"""Neighbouring tiles that differ by more than this where they meet (rms, white being 1) are said to leave seams: where
they should be equal, and where they are blended, as they have less context than the network sees. Measured: 0, or the
last bit; blended, at most 0.0014 over the whole picture (IMDN in tiles of 128 x 128, docs/super-resolution.md)."""


@dataclass
class Seams:
    """Looks at what neighbouring tiles give where they meet: `on_seam` of `tiled`."""

    blended: bool
    """Whether tiles have less context than the network sees."""
    worst: float = 0.0
    """The largest rms of a difference; of values beyond [-1, 1], as a share of theirs."""

    def see(self, one: Any, other: Any) -> None:
        """Take note of the same pixels, as two tiles have them."""
        import numpy as np

        one, other = (np.asarray(each, np.float64) for each in (one, other))
        size, apart = (float(np.sqrt(np.square(each).mean())) for each in (one, one - other))
        self.worst = max(self.worst, apart / max(1.0, size))

    def remark(self, name: str) -> None:
        """Say what was seen."""
        from bitlens.files import remark

        most = APART_BLENDED if self.blended else APART
        if self.worst > most:
            remark(
                f"{name}: neighbouring tiles differ by {self.worst:.2g} (rms, white is 1) where they meet, so the "
                f"result is not that of the whole; wanted {most:.2g} or less, from a network that sees no farther than "
                "it says; give more --memory-mb, so that there are fewer tiles or none"
            )


@dataclass
class Watch:
    """Looks at enlarged pictures."""

    name: str
    low: float = math.inf
    high: float = -math.inf
    """Of what came out."""
    dark: float = math.inf
    light: float = -math.inf
    """Of what went in."""

    def see(self, small: "np.ndarray", large: "np.ndarray") -> None:
        """Take note of a part of a picture, and of its enlargement."""
        self.low, self.high = min(self.low, float(large.min())), max(self.high, float(large.max()))
        self.dark, self.light = min(self.dark, float(small.min())), max(self.light, float(small.max()))

    def remark(self) -> None:
        """Say what was seen."""
        from bitlens.files import remark

        if self.low < -FAR or self.high > 1 + FAR:
            remark(
                f"{self.name}: the network's output spans [{self.low:.6g}, {self.high:.6g}], far beyond [0, 1], and "
                "cannot be right; wanted a network that fits such pictures; try another one (IMDN, say)"
            )
        elif self.high - self.low < FLAT and self.light - self.dark > 10 * FLAT:
            remark(
                f"{self.name}: the network's output is {self.low:.3g} everywhere, and cannot be right; wanted a "
                "trained network; try another one"
            )


@dataclass
class CaptureWatch:
    """Looks at videos that were rebuilt from measurements."""

    name: str
    """Of the network."""
    low: float = math.inf
    high: float = -math.inf
    flat: int = 0
    """Videos that are the same everywhere, and do not explain their measurements."""
    unexplained: int = 0
    """Videos beyond `UNEXPLAINED`."""
    seen: int = 0

    def see(self, measurement: "np.ndarray", mask: "np.ndarray", video: "np.ndarray") -> None:
        """Take note of a measurement (h, w) with its mask (t, h, w), and of its video (t, h, w), or (t, h, w, 3)."""
        import numpy as np

        low, high = float(video.min()), float(video.max())
        self.low, self.high, self.seen = min(self.low, low), max(self.high, high), self.seen + 1
        if video.ndim == 3:
            missed = np.einsum("thw,thw->hw", mask, video, dtype=np.float64) - measurement
            far = float(np.square(missed).sum()) > UNEXPLAINED**2 * float(
                np.square(measurement, dtype=np.float64).sum()
            )
            self.unexplained += far
            self.flat += far and high - low < FLAT

    def remark(self) -> None:
        """Say what was seen."""
        from bitlens.files import remark

        other = "a network" if self.name == "gap-tv" else "gap-tv or another network"
        todo = f"try {other}, and --gain if the scale is known"
        if self.low < -FAR_VIDEO or self.high > 1 + FAR_VIDEO:
            remark(
                f"{self.name}: its video spans [{self.low:.6g}, {self.high:.6g}], far beyond [0, 1], and cannot be "
                f"right; wanted measurements at their true scale, and a network that fits them; {todo}"
            )
        elif self.flat:
            remark(
                f"{self.name}: {self.flat} of {self.seen} videos are {self.low + 0.0:.3g} everywhere, which the "
                f"measurements are not; wanted a trained network; {todo}"
            )
        elif self.unexplained:
            remark(
                f"{self.name}: {self.unexplained} of {self.seen} videos, measured again, differ from what the camera "
                f"gave by more than {UNEXPLAINED:.0%} of it, and cannot be right; wanted videos that explain it; {todo}"
            )
