"""Measure a network of several widths beside networks that were trained for one each; writes JSON.

python docs/measure_nested.py results/nested/abpn-x2.json --nested RUN/nested.safetensors \
  --alone RUN/w8.safetensors RUN/w4.safetensors RUN/w3.safetensors RUN/w2.safetensors --data set5 set14

All are trained from one float network by one recipe with the same steps, which their files tell: a step of a nested
network takes as long as one of the others.
"""

import argparse
from pathlib import Path
from typing import Any

from rendering import write_result

from bitlens import checkpoint, evaluate


def scores(model: str, sets: list[str]) -> dict[str, Any]:
    """PSNR on each set, how it was trained, and its bytes."""
    about = checkpoint.describe(model)
    return {
        "psnr": {name: evaluate(model, name, ssim=False)[0].average.psnr for name in sets},
        "trained": about.provenance.get("trained"),
        "mb": about.bytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--nested", required=True)
    parser.add_argument("--alone", nargs="+", required=True, help="one for each width")
    parser.add_argument("--data", nargs="+", required=True)
    given = parser.parse_args()
    widths = checkpoint.describe(given.nested).widths
    alone = {checkpoint.describe(model).bits[0]: model for model in given.alone}
    if set(alone) != set(widths):
        parser.error(f"--alone has {sorted(map(str, alone))} bits; wanted one for each of {widths}")
    rows = [
        {"bits": bits, "nested": scores(f"{given.nested}@{bits}", given.data), "alone": scores(alone[bits], given.data)}
        for bits in widths
    ]
    start = checkpoint.describe(given.nested).provenance.get("start")
    assert isinstance(start, str)
    content = {
        "start": Path(start).stem,
        "float": scores(start, given.data)["psnr"],
        "mb": checkpoint.describe(given.nested).bytes / 1e6,
        "rows": rows,
    }
    write_result(given.out, content)


if __name__ == "__main__":
    main()
