"""The published methods, one entry each: plain data, read without torch. A new one is its file and its entry here."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["CATALOG", "Entry", "in_words"]


@dataclass(frozen=True)
class Entry:
    """One method."""

    name: str
    """In recipes, and what --method takes."""
    where: str
    """What has its `recipe` (see `applied.Method`): a module of this folder, or `module:object`."""
    use: str
    """What it is for, in words; the same for those that are alike."""

    @property
    def method(self) -> Any:
        """The method; its module is imported now."""
        module, _, name = self.where.partition(":")
        found = import_module(f"{__package__}.{module}")
        return getattr(found, name) if name else found


ANY, TRAINED, DUN = "of every network", "of video networks, to be trained after it", "of DUN"
REFINED = "of networks that enlarge pictures, refined against the float network"
ENTRIES = [
    Entry("direct", "direct", ANY),
    Entry("ends", "ends:ENDS", ANY),
    Entry("shortcuts", "ends:SHORTCUTS", "of networks of plain 2-D convolutions"),
    Entry("qsci", "qsci", TRAINED),
    Entry("qvit", "qvit", TRAINED),
    Entry("pams", "pams", TRAINED),
    Entry("unfolding", "unfolding", DUN),
    Entry("minmax", "ptq:MINMAX", ANY),
    Entry("percentile", "ptq:PERCENTILE", ANY),
    Entry("dobi", "ptq:DOBI", ANY),
    Entry("dbdc-pac", "twodquant:DBDC_PAC", REFINED),
    Entry("dqc", "twodquant:DQC", REFINED),
    Entry("2dquant", "twodquant:TWODQUANT", REFINED),
    Entry("condiquant", "twodquant:CONDIQUANT", REFINED),
    Entry("balanced", "twodquant:BALANCED", REFINED),
    Entry("gptq", "twodquant:GPTQ", REFINED),
    Entry("2dquant-plus", "twodquant:PLUS", REFINED),
    Entry("svdquant", "twodquant:SVDQUANT", REFINED),
    Entry("brecq", "twodquant:BRECQ", REFINED),
]
CATALOG = {entry.name: entry for entry in ENTRIES}
"""Every method, by its name."""


def in_words() -> str:
    """The names, those that are for the same together: for the help of flags."""
    uses: dict[str, list[str]] = {}
    for entry in CATALOG.values():
        uses.setdefault(entry.use, []).append(entry.name)
    return "; ".join(f"{use}: {', '.join(names)}" for use, names in uses.items())
