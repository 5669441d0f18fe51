"""`bitlens tune`: budgets are kept, two runs give one file, and what was stopped goes on to the same one."""

import inspect
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitlens
from bitlens import checkpoint
from bitlens.cli import main
from bitlens.networks.abpn import ABPN
from bitlens.networks.dun import DUN
from bitlens.quant.allocate import Program
from bitlens.quant.layers import quantized_layers
from bitlens.tuning import Budgets, Measured, tune
from bitlens.tuning.search import decibels, refine, rules_of, solve

SMALL: dict[str, Any] = dict(choices=("w8a8", "w4a6", "w2a2"), measure="gradient", size=16, threads=1, steps=2)
FLAGS = ["--bits", "w8a8", "w4a6", "w2a2", "--measure", "gradient", "--size", "16", "--threads", "1", "--steps", "2"]


@pytest.fixture(scope="module", autouse=True)
def small_data() -> Any:
    """Few and small made scenes."""
    patch = pytest.MonkeyPatch()
    for name, value in (("MADE", 1), ("MADE_FRAMES", 8), ("MADE_SIZE", 128)):
        patch.setattr(f"bitlens.data.fitting.{name}", value)
    for name, value in (("BATCHES", 2), ("CHECKED", 1), ("ROUNDS", 1)):
        for module in ("measured", "search"):
            patch.setattr(f"bitlens.tuning.{module}.{name}", value)
    for name, value in (("POOL", 2), ("POINTS", 3), ("RANGES", ("mse",))):
        patch.setattr(f"bitlens.tuning.search.{name}", value)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float network that enlarges images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("images") / "float.safetensors"
    return bitlens.save(ABPN(2, 8, 4).eval(), path)


@pytest.mark.kernels
def test_a_budget_of_bytes_is_kept_and_bits_are_those_of_the_report(images: Path, tmp_path: Path) -> None:
    whole = tune(images, tmp_path / "a.safetensors", Budgets(max_loss=40.0), **SMALL)
    budget = 0.9 * whole["uniform"][0]["MB"]
    found = tune(images, tmp_path / "b.safetensors", Budgets(mb=budget), **SMALL)
    assert found["measured"]["MB"] <= budget and found["measured"]["ms"] > 0
    network = checkpoint.load(tmp_path / "b.safetensors")
    assert {name: layer.bits.label for name, layer in quantized_layers(network).items()} == found["chosen"]
    assert json.loads((tmp_path / "b.json").read_text())["chosen"] == found["chosen"]
    assert "[[rules]]" in (tmp_path / "b.toml").read_text()
    errors = [one["error"] for one in found["curve"]]
    assert errors == sorted(errors, reverse=True)  # from the least time on


@pytest.mark.kernels
def test_two_runs_give_one_file_and_measurements_are_kept(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    tune(images, tmp_path / "a.safetensors", Budgets(gmac=1.0), folder=folder, **SMALL)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix != ".pt"}
    tune(images, tmp_path / "b.safetensors", Budgets(gmac=1.0), folder=folder, **SMALL)
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix != ".pt"}
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds measurements of another network"):
        tune(images, tmp_path / "c.safetensors", Budgets(gmac=1.0), folder=folder, seed=5, **SMALL)


@pytest.mark.kernels
def test_an_unfolding_network_is_tuned_on_captures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    bitlens.save(DUN(2, (8, 8, 8), (1, 1, 1), 2).eval(), tmp_path / "float.safetensors")
    model, out = str(tmp_path / "float.safetensors"), tmp_path / "tuned.safetensors"
    few, paged = ["--bits", "w8a8", "w4a6", *FLAGS[4:]], ["--page", str(tmp_path / "page.html")]
    assert main(["tune", model, "--budget-ms", "1e4", "--frames", "4", *few, "--out", str(out), *paged]) == 0
    assert "tuned: bits for a budget" in (tmp_path / "page.html").read_text()
    shown = capsys.readouterr().out
    assert "calibrated on made scenes" in shown and "priors.*.head" in shown and "of 10000" in shown
    assert checkpoint.describe(out).provenance["data"]["masks"] == "random binary, fresh"


def test_what_is_not_possible_is_said(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, keep = str(tmp_path / "a.safetensors"), ["--run", str(tmp_path / "kept")]
    for flags, words in (
        ([], "no budget; wanted one or more"),
        (["--budget-mb", "0.0001"], "the least possible is"),
        (["--budget-mb", "-1"], "a budget of -1.0 for mb"),
        (["--max-loss", "1", "--steps", "-1"], "--steps -1"),
    ):
        assert main(["tune", str(images), *FLAGS, *flags, *keep, "--out", out]) == 2
        assert words in capsys.readouterr().err and not Path(out).exists()
    assert main(["tune", "abpn-x2-w8a8", "--max-loss", "1", "--out", out]) == 2
    assert "is not a float network" in capsys.readouterr().err


def test_rules_name_what_differs_from_the_most_frequent_bits() -> None:
    rules = rules_of({"a": "w8a8", "b": "w4a6", "c": "w4a6"})
    assert [(rule.pattern, rule.bits.label if rule.bits else None) for rule in rules] == [("a", "w8a8"), ("*", "w4a6")]


def test_what_is_checked_is_not_what_is_fitted_to(images: Path, tmp_path: Path) -> None:
    subject = Measured(images, tmp_path, ("w8a8",), "alone", None, 16, 8, 1, 0)
    fitted, checked = ({name for name in half.names} for half in (subject.data.fit, subject.data.check))
    assert fitted and checked and not fitted & checked


class Foretold:
    """A subject whose program is known: two layers, of 4 and 8 bits, and losses that are `times` what is foretold."""

    def __init__(self, times: float):
        error, megabytes = np.array([[0.0, 0.02], [0.0, 0.03]]), np.array([[0.4, 0.2], [0.4, 0.19]])
        self.made = Program(("a", "b"), ("w8a8", "w4a4"), error, {"MB": megabytes}, {"MB": 0.1})
        self.times = times

    def program(self, timed: bool) -> Program:
        return self.made

    def loss_of(self, labels: dict[str, str]) -> float:
        chosen = [self.made.choices.index(labels[name]) for name in self.made.layers]
        return self.times * decibels(self.made.of(np.array(chosen)))


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`solve` for a `Foretold`, whose networks are their labels; `extra` is what files are larger than foretold."""

    def run(subject: Foretold, budgets: Budgets, extra: float = 0.0) -> dict[str, str]:
        def size(labels: dict[str, str]) -> float:
            chosen = np.array([subject.made.choices.index(labels[name]) for name in subject.made.layers])
            return subject.made.of(chosen, "MB") + extra

        monkeypatch.setattr("bitlens.tuning.search.calibrated", lambda subject, labels: (labels, "known"))
        monkeypatch.setattr("bitlens.tuning.search.can_be_timed", lambda subject, budgets: False)
        monkeypatch.setattr("bitlens.tuning.search.file_size", size)
        return inspect.unwrap(solve)(subject, budgets)[1]

    return run


def test_a_file_larger_than_foretold_is_made_smaller(solved: Any) -> None:
    assert set(solved(Foretold(1.0), Budgets(mb=0.95)).values()) == {"w8a8"}
    assert sorted(solved(Foretold(1.0), Budgets(mb=0.95), extra=0.1).values()) == ["w4a4", "w8a8"]
    with pytest.raises(ValueError, match=r"the last network that was made has 0\.59 MB; raise them"):
        solved(Foretold(1.0), Budgets(mb=0.55), extra=0.1)


def test_a_loss_other_than_foretold_is_solved_again(solved: Any) -> None:
    """0.22 dB are foretold for both layers at 4 bits, 0.13 for one."""
    assert solved(Foretold(1.0), Budgets(max_loss=0.15)) == {"a": "w8a8", "b": "w4a4"}
    assert solved(Foretold(0.5), Budgets(max_loss=0.15)) == {"a": "w4a4", "b": "w4a4"}
    assert solved(Foretold(2.0), Budgets(max_loss=0.15)) == {"a": "w8a8", "b": "w8a8"}


def test_refinement_that_does_not_help_is_undone(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Measured(images, tmp_path, ("w4a6",), "alone", None, 16, 8, 1, 0)
    network, before = subject.variants["w4a6"], {k: v.clone() for k, v in subject.variants["w4a6"].state_dict().items()}

    def spoil(student: torch.nn.Module, *rest: Any, **more: Any) -> None:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1.5)

    monkeypatch.setattr("bitlens.tuning.search.distill", spoil)
    assert refine(subject, network, 3) == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_errors_weigh_as_psnr_does(images: Path, tmp_path: Path) -> None:
    subject = Measured(images, tmp_path, ("w8a8",), "alone", None, 16, 8, 1, 0)
    [batch] = subject.checked
    own = (subject.network(*batch.inputs) - batch.truth).square().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(subject.weights[0] * own, torch.ones_like(own))


@pytest.mark.slow
@pytest.mark.kernels
def test_a_killed_tuning_goes_on_to_the_same_file(tmp_path: Path) -> None:
    """Killed ten times, each a little later, with what was measured kept; then it ends as one that was left alone."""
    command = [sys.executable, "-m", "bitlens", "tune", "abpn-x2", "--max-loss", "0.1", "--steps", "12", "--size", "32"]
    command += ["--bits", "w8a8", "w4a6", "w3a5", "--threads", "1", "--measure", "alone"]
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    started = time.monotonic()
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    lasts = time.monotonic() - started
    (stopped.with_suffix(".tune")).mkdir()
    for file in whole.with_suffix(".tune").glob("milliseconds-*"):  # a time is never measured twice alike
        (stopped.with_suffix(".tune") / file.name).write_bytes(file.read_bytes())
    for number in range(10):
        process = subprocess.Popen([*command, "--out", str(stopped)], stdout=subprocess.DEVNULL)
        time.sleep(lasts * (0.1 + 0.08 * number))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(stopped)], check=True, capture_output=True)
    assert stopped.read_bytes() == whole.read_bytes()
