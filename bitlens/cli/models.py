"""`bitlens models`: the checkpoints that come with bitlens."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Models:
    """List the checkpoints that come with bitlens, and gap-tv, the method that needs no weights.

    MB are 10^6 bytes of the file. dB is the PSNR that the checkpoint claims; `bitlens evaluate` measures it.

    Example:
        bitlens models
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
            print(json.dumps([asdict(one) for one in listed], indent=2, default=str))
            return
        rows = [
            [
                one.name,
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
        out.print("use a name wherever a command wants a model: bitlens info NAME, bitlens evaluate NAME")
