"""`bitlens verify`: measures again what a checkpoint claims in its header, and says whether it holds."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

TOLERANCE = {"psnr": 0.01, "ssim": 1e-3}
"""How far a measured score may lie from the claimed one: dB, and SSIM."""


@dataclass(frozen=True)
class Check:
    """One claim beside what was measured."""

    what: str
    claim: str | int | float
    measured: str | int | float
    holds: bool


@dataclass(frozen=True)
class Verify:
    """Run `bitlens evaluate` on the test sets that a checkpoint claims scores for, and compare.

    PSNR must agree within 0.01 dB, SSIM within 0.001, the mask by name; bits, number and bytes of the weights of
    every layer must be exactly those of the header. The exit code is 0 where all holds, 1 where not, 2 where
    nothing could be measured.

    Example:
        bitlens verify efficientsci-t-qsci-w4a4 --data six-scenes --json verdict.json
    """

    model: tyro.conf.Positional[str]
    """A shipped checkpoint (see `bitlens models`), or the path of a .safetensors."""
    data: str | None = None
    """Only the claims about this test set: a name, or the folder or file that carries it. Default: all claims."""
    json: Path | None = None
    """Also write claims, measured values and settings to this file."""

    def run(self) -> int:
        from bitlens import checkpoint
        from bitlens.cli.shared import output_file
        from bitlens.inference.evaluation import evaluate
        from bitlens.report import console, table

        with output_file(self.json) as json_path:
            about = checkpoint.describe(self.model)
            claims, settings = self.claims(about), []
            checks = size_checks(about, checkpoint.stored_layers(self.model))
            for data, claim in claims.items():
                result = evaluate(self.model, data, ssim="ssim" in claim)[0].to_dict()
                checks += score_checks(data, claim, result)
                settings.append(result["settings"])
            holds = all(check.holds for check in checks)
            if json_path is not None:
                content = {
                    "model": about.name,
                    "holds": holds,
                    "checks": [asdict(check) for check in checks],
                    "settings": settings,
                }
                json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        rows = [
            (c.what, as_text(c.claim), as_text(c.measured), "holds" if c.holds else "DOES NOT HOLD") for c in checks
        ]
        console().print(table(about.name, ("claim about", "claimed", "measured", "verdict"), rows, texts=4))
        failed = sum(not check.holds for check in checks)
        print(f"{failed} of {len(checks)} claims do not hold" if failed else f"all {len(checks)} claims hold")
        return 1 if failed else 0

    def claims(self, about: Any) -> dict[str, dict[str, Any]]:
        """Test set (as `evaluate --data` takes it) -> its claimed scores.

        Raises:
            ValueError: no claims, none about `data`, or something that is no score.
        """
        if not about.claims:
            raise ValueError(
                f"{about.name} carries no claims; wanted scores in its header; measure it with bitlens evaluate"
            )
        chosen = about.claims
        if self.data is not None:
            name = Path(self.data).name
            if name not in chosen:
                known = ", ".join(chosen)
                raise ValueError(f"{about.name} claims nothing about {name}; wanted one of {known}; change --data")
            chosen = {self.data: chosen[name]}
        for data, claim in chosen.items():
            scores = {key: value for key, value in claim.items() if key != "mask"} if isinstance(claim, dict) else {}
            if "psnr" not in scores or not all(key in TOLERANCE and is_number(x) for key, x in scores.items()):
                raise ValueError(
                    f"{about.name} claims {json.dumps(claim)} about {data}; wanted psnr, and ssim and mask where "
                    "known; measure it with bitlens evaluate and write its claims again"
                )
        return chosen


def score_checks(data: str, claim: dict[str, Any], result: dict[str, Any]) -> list[Check]:
    """Each claimed score, and the mask it was claimed for, beside a result of `bitlens evaluate`."""
    name, average, mask = Path(data).name, result["average"], result["settings"].get("mask", "none")
    checks = [Check(f"{name}: mask", claim["mask"], mask, claim["mask"] == mask)] if "mask" in claim else []
    for key, tolerance in TOLERANCE.items():
        if key in claim:
            # the tolerance is for the last digits of other machines; 1e-9 is for the subtraction itself
            near = abs(average[key] - claim[key]) <= tolerance + 1e-9
            checks.append(Check(f"{name}: {key}", claim[key], average[key], near))
    return checks


def size_checks(about: Any, stored: list[Any]) -> list[Check]:
    """What the header says of the layers beside what the file holds; layer by layer equal, shown in sum."""
    from bitlens.cli.info import bits_in_words

    said = about.layers
    bits = bits_in_words(about), bits_in_words(replace(about, layers=stored))
    checks = [Check("bits (weights, activations)", *bits, same(said, stored, "name", "weight_bits", "activation_bits"))]
    for what, field in (("number of weights", "weights"), ("bytes of weights", "bytes")):
        claim, measured = (sum(getattr(layer, field) for layer in table) for table in (said, stored))
        checks.append(Check(what, claim, measured, same(said, stored, field)))
    return checks


def same(said: list[Any], found: list[Any], *fields: str) -> bool:
    """Whether two tables of layers agree in these fields of every layer."""
    return [[getattr(x, f) for f in fields] for x in said] == [[getattr(x, f) for f in fields] for x in found]


def is_number(value: Any) -> bool:
    """Whether a claim is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_text(value: str | int | float) -> str:
    """A score with four decimals, whole numbers in groups of three."""
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
