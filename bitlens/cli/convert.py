"""`bitlens convert`: official weights of a network that is known here, into a checkpoint."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Convert:
    """Turn official weights (.pth, .pt, .ckpt or .safetensors) into a checkpoint that every verb takes.

    Which network they belong to, its size and its scale are read off the weights. Every key must find its place, and
    every place its key; else nothing is written, and what is left over is named. A .pth is read as numbers only: one
    that holds code is refused, and the code is not run.

    Example:
        bitlens convert official.pth --out ngswin-x2.safetensors
    """

    weights: tyro.conf.Positional[Path]
    """Weights of EfficientSCI, Q-SCI, STFormer, SwinIR, NGswin, EDSR, IMDN, PAN or SMFANet, as published."""
    out: Path
    """The checkpoint to write (.safetensors)."""
    bits: int | None = None
    """Of Q-SCI's low-bit weights, which do not say it: 8, 4, 3 or 2."""

    def run(self) -> None:
        from bitlens import checkpoint
        from bitlens.cli.shared import check_other
        from bitlens.cli.train import check_target
        from bitlens.inference.machine import describe_run
        from bitlens.official import from_official, read_official
        from bitlens.report import console, table

        check_target(self.out)
        check_other(self.out, self.weights)
        try:
            network: Any = from_official(read_official(self.weights), self.bits)
        except ValueError as error:
            said = str(error)
            raise ValueError(said if str(self.weights) in said else f"{self.weights}: {said}") from error
        report = network.key_report
        provenance = {
            "converted": self.weights.name,
            "source_sha256": hashlib.sha256(self.weights.read_bytes()).hexdigest(),
            "run": describe_run(),
        }
        checkpoint.save(network, self.out, provenance=provenance)
        about = checkpoint.describe(self.out)
        rows = [
            ("in their place", str(len(report.mapped))),
            ("flags of the official quantizer, not needed", str(len(report.flags))),
            ("constants and layers that change nothing", str(len(report.idle))),
        ]
        out = console()
        sizes = ", ".join(f"{name} {value}" for name, value in about.config.items())
        out.print(f"{self.weights.name} is {type(network).__name__} ({about.task}): {sizes}", highlight=False)
        out.print(table("keys of the official weights", ("", "keys"), [row for row in rows if row[1] != "0"]))
        if about.network == "pan" and about.config["scale"] == 2:
            out.print("PAN's weights for scale 3 look the same as those for 2, for which these are taken")
        out.print(f"wrote {self.out} ({about.bytes / 1e6:.2f} MB)")
