"""The catalogue: entries that name real classes, and all that a new network needs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitlens import checkpoint, tasks
from bitlens.methods import quantize
from bitlens.networks import catalog
from bitlens.networks.catalog import CATALOG, Entry, entry_of, recognised, task_of


@pytest.mark.parametrize("name", CATALOG)
def test_entries_name_classes(name: str) -> None:
    entry = CATALOG[name]
    assert issubclass(entry.kind, nn.Module)
    assert entry.task in tasks.TASKS


def test_a_mark_belongs_to_one_entry() -> None:
    marks = [entry.mark for entry in CATALOG.values() if entry.mark is not None]
    assert len(set(marks)) == len(marks)
    assert recognised({mark: torch.zeros(1) for mark in marks[1:2]}) is CATALOG["stformer"]
    assert recognised({"conv.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.sizes])
def test_what_is_trained_from_nothing(name: str) -> None:
    entry = CATALOG[name]
    network = entry.untrained(entry.sizes[0], 4)
    assert entry_of(network) is entry
    assert task_of(network) == entry.task


class Doubling(nn.Module):
    """A small network for pictures that is in no catalogue yet."""

    scale, radius, alignment = 2, 1, 1

    def __init__(self, channels: int = 4):
        super().__init__()
        self.config = {"channels": channels}
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 12, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.last(torch.relu(self.first(image))), 2)


def test_a_new_network_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Doubling()
    assert entry_of(network) is None
    assert tasks.of(network).name == "super-resolution"  # by its scale
    with pytest.raises(ValueError, match="Doubling cannot be saved"):
        checkpoint.save(network, tmp_path / "x.safetensors")
    monkeypatch.setitem(catalog.CATALOG, "doubling", Entry("doubling", "super-resolution", Doubling))
    pictures = [(torch.rand(1, 3, 8, 8),) for _ in range(2)]
    low, _ = quantize(network, "dobi", pictures, bits=4)
    path = checkpoint.save(low, tmp_path / "x.safetensors")
    assert checkpoint.describe(path).task == "super-resolution"
    assert torch.equal(checkpoint.load(path)(*pictures[0]), low(*pictures[0]))


def test_a_header_cannot_ask_for_more_than_its_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.CATALOG, "doubling", Entry("doubling", "super-resolution", Doubling))
    path = checkpoint.save(Doubling(), tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes().replace(b'{\\"channels\\":4}', b'{\\"channels\\":9}'))
    with pytest.raises(ValueError, match="does not fit the network it names"):
        checkpoint.load(path)
