"""`bitlens models`: the checkpoints that come with bitlens."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitlens.checkpoint.header import Description


@dataclass(frozen=True)
class Models:
    """List the checkpoints that come with bitlens, and gap-tv, the method that needs no weights.

    MB are 10^6 bytes of the file. dB is the PSNR that the checkpoint claims; `bitlens evaluate` measures it.

    Example:
        bitlens models
        bitlens models --json
    """

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        from dataclasses import asdict

        from bitlens import checkpoint
        from bitlens.cli.info import bits_in_words, claim_in_words
        from bitlens.report import console, table

        listed = [checkpoint.describe(name) for name in ("gap-tv", *checkpoint.shipped())]
        if self.json:
            print(json.dumps([asdict(one) | in_short(one) for one in listed], indent=2, default=str))
            return
        rows = [
            [
                one.name + (" *" if one.name == checkpoint.default(one.task) else ""),
                one.network,
                bits_in_words(one),
                f"{one.bytes / 1e6:.2f}",
                claim_in_words(one.claims),
            ]
            for one in listed
        ]
        out = console()
        columns = ["name", "network", "bits (weights, activations)", "MB", "claimed"]
        out.print(table("checkpoints that come with bitlens", columns, rows, texts=3))
        out.print("* is taken where no model is named")
        out.print("use a name wherever a command wants a model: bitlens info NAME, bitlens evaluate NAME")


def in_short(about: "Description") -> dict[str, Any]:
    """What scripts look for beside a checkpoint's header."""
    from bitlens import checkpoint

    weight_bits, activation_bits = about.bits
    return {
        "task": about.task,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "mb": about.bytes / 1e6,
        "default": about.name == checkpoint.default(about.task),
    }
