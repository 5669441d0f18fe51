"""Training learns, stops when told to, and a run that was killed goes on exactly where it was."""

import json
import math
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitlens.data.clips import Clips, ClipSampler
from bitlens.methods import quantize
from bitlens.networks.dun import DUN
from bitlens.networks.efficientsci import EfficientSCI, initialize_identity
from bitlens.training.loop import State, train, validation_batches, validation_psnr
from bitlens.training.settings import Training

PROGRAM = Path(__file__).with_name("run.py")
REPOSITORY = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = dict(steps=12, warmup=2, log_every=1, save_minutes=1e-6, bf16=False)


def sampler(seed: int = 1, batch: int = 2) -> ClipSampler:
    ramp = np.linspace(0, 250, 24 * 24).reshape(24, 24)
    video = np.stack([np.roll(ramp, 3 * t, axis=1) for t in range(10)]).astype(np.uint8)
    return ClipSampler(Clips([video], ["ramp"]), frames=4, crop=8, batch=batch, seed=seed)


def network() -> EfficientSCI:
    torch.manual_seed(0)
    made = EfficientSCI(8, 1, 2)
    initialize_identity(made)
    return made


class Gain(nn.Module):
    """The quickest network there is: the estimate of every frame, times a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([[0.3]]))

    def forward(self, measurement: Tensor, mask: Tensor) -> Tensor:
        return (self.gain * (measurement / mask.sum(1).clamp_min(1)).unsqueeze(1)).unsqueeze(1).expand_as(mask[:, None])


def log(folder: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def command(folder: Path, settings: dict[str, Any], seconds: float = 0.0) -> list[str]:
    return [sys.executable, str(PROGRAM), str(folder), json.dumps(settings), str(seconds)]


def run(folder: Path, settings: dict[str, Any]) -> str:
    """The program, inside this process: how and where it ended."""
    return runpy.run_path(str(PROGRAM))["main"](folder, settings)


def run_until(folder: Path, settings: dict[str, Any], step: int, number: int) -> tuple[int, str]:
    """Start the program, and send it a signal as soon as it has finished a step; its exit code and last line."""
    with subprocess.Popen(
        command(folder, settings, 0.05), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == str(step):
                process.send_signal(number)
                break
        rest = process.stdout.read().splitlines()
    return process.returncode, rest[-1] if rest else ""


def same_weights(one: Path, other: Path) -> None:
    a, b = (torch.load(folder / "final.pt", weights_only=True) for folder in (one, other))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"bf16": True, "log_every": 5, "validated": True, "validate_every": 4}, marks=pytest.mark.slow),
        {"quantized": True, "save_minutes": 0.001, "optimizer": "adamw", "weight_decay": 0.1},
    ],
    ids=["float", "bf16", "quantized"],
)
def test_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    """kill -9: losses, validations and final weights agree bit for bit."""
    settings = {**QUICK, **changes}
    assert run(tmp_path / "whole", settings) == "finished 12"
    for step in (4, 9) if changes.get("bf16") else (7,):
        code, _ = run_until(tmp_path / "killed", settings, step, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (tmp_path / "killed" / "final.pt").exists()
    assert run(tmp_path / "killed", settings) == "finished 12"
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    same_weights(tmp_path / "killed", tmp_path / "whole")
    if changes.get("validated"):
        assert sum("psnr" in line for line in log(tmp_path / "whole")) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stop_request_saves_and_resumes(tmp_path: Path, number: int) -> None:
    settings = {**QUICK, "save_minutes": 60.0, "log_every": 4}
    code, last = run_until(tmp_path / "stopped", settings, 6, number)
    reason, step = last.split()
    assert code == 0 and reason == "interrupted" and 6 <= int(step) < 12
    assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["step"] == int(step)
    assert run(tmp_path / "stopped", settings) == "finished 12"
    assert run(tmp_path / "whole", settings) == "finished 12"
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")
    same_weights(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("where", ["between saves", "in the last line"])
def test_log_is_cut_back_to_the_state(tmp_path: Path, where: str) -> None:
    """What a killed run logged after its last save is done again, so it must not stand there twice."""
    train(Gain(), sampler(), Training(**QUICK), tmp_path / "whole")
    train(Gain(), sampler(), Training(**{**QUICK, "minutes": 1e-9}), tmp_path / "cut")
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 0.5}\n' if where == "between saves" else '{"step": 2, "lo')
    train(Gain(), sampler(), Training(**QUICK), tmp_path / "cut")
    assert log(tmp_path / "cut") == log(tmp_path / "whole")


def test_loss_goes_down(tmp_path: Path) -> None:
    settings = Training(steps=80, warmup=5, learning_rate=5e-3, log_every=10, bf16=False, ema=0.9)
    held_out = validation_batches(sampler(seed=9), 2)
    model = network()
    before = validation_psnr(model, held_out, False)
    lines: list[dict[str, Any]] = []
    result = train(model, sampler(), settings, tmp_path, validation={"clips": held_out}, on_log=lines.append)
    assert (result.step, result.reason) == (80, "finished") and result.psnr is not None
    assert result.psnr > before + 1.0
    assert validation_psnr(model, held_out, False) == pytest.approx(result.psnr)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["step"] for line in lines] == list(range(10, 81, 10))
    assert not model.training


def test_quantized_network_learns(tmp_path: Path) -> None:
    held_out = validation_batches(sampler(seed=9), 2)
    model, _ = quantize(network(), "qsci", [(y, mask) for _, mask, y in held_out], bits=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    psnr = validation_psnr(model, held_out, False)
    settings = Training(steps=40, warmup=5, learning_rate=2e-3, bf16=False, ema=0.9)
    result = train(model, sampler(), settings, tmp_path, validation={"clips": held_out})
    assert result.psnr is not None and result.psnr > psnr + 0.5
    after = model.state_dict()
    assert not torch.equal(after["fem.0.weight_grid.scale"], before["fem.0.weight_grid.scale"])
    assert not torch.equal(after["fem.2.input_grid.zero_point"], before["fem.2.input_grid.zero_point"])


def test_every_stage_of_an_unfolding_network_learns(tmp_path: Path) -> None:
    """The loss has a term for each stage, and kinds of validation are reported one by one."""
    torch.manual_seed(0)
    model = DUN(2, (4, 4, 4), (1, 1, 1), 2)
    held_out = {"a": validation_batches(sampler(seed=9), 1), "b": validation_batches(sampler(seed=8), 1)}
    settings = Training(steps=20, warmup=2, optimizer="muon", early_stages=0.5, bf16=False, ema=0.5, log_every=5)
    lines: list[dict[str, Any]] = []
    result = train(model, sampler(), settings, tmp_path, validation=held_out, on_log=lines.append)
    assert set(lines[-1]["psnrs"]) == {"a", "b"}
    assert result.psnr == pytest.approx(sum(lines[-1]["psnrs"].values()) / 2, abs=1e-3)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(bool(prior.tail.weight.any()) for prior in model.priors)  # type: ignore[union-attr]


def test_minutes_are_a_budget(tmp_path: Path) -> None:
    result = train(Gain(), sampler(), Training(steps=10**6, minutes=0.005, bf16=False), tmp_path)
    assert result.reason == "minutes" and 0 < result.step < 10**6
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == result.step
    again = train(Gain(), sampler(), Training(steps=10**6, minutes=1e-9, bf16=False), tmp_path)
    assert again.step == result.step + 1


def test_steps_may_be_extended(tmp_path: Path) -> None:
    """Constant rate, so that the schedule does not depend on the number of steps."""
    settings = {**QUICK, "final": 1.0, "ema": 0.5}
    short = train(Gain(), sampler(), Training(**{**settings, "steps": 5}), tmp_path / "two")
    assert short.step == 5
    two, one = Gain(), Gain()
    train(two, sampler(), Training(**settings), tmp_path / "two")
    train(one, sampler(), Training(**settings), tmp_path / "one")
    assert torch.equal(two.gain, one.gain)
    assert log(tmp_path / "two") == log(tmp_path / "one")


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = Gain()
    train(first, sampler(), Training(**QUICK), tmp_path)
    again = Gain()
    steps: list[int] = []
    result = train(again, sampler(), Training(**QUICK), tmp_path, on_step=steps.append)
    assert (result.step, result.reason, steps) == (12, "finished", [])
    assert torch.equal(again.gain, first.gain)


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 1.0), ("seed", 3), ("bf16", True), ("loss", "mse")])
def test_other_settings_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    train(Gain(), sampler(), Training(**QUICK), tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"holds a run with other settings: {name} \(.* -> {value}\); give another"):
        train(Gain(), sampler(), Training(**{**QUICK, name: value}), tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before
    train(Gain(), sampler(), Training(**{**QUICK, "minutes": 5.0, "log_every": 3, "validate_every": 7}), tmp_path)


class Mark:
    """Code in a pickle: it makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "keys", "code"])
def test_damaged_state(tmp_path: Path, damage: str) -> None:
    train(Gain(), sampler(), Training(**QUICK), tmp_path)
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    if damage == "keys":
        torch.save({"step": 3}, path)
    elif damage == "code":
        torch.save({"step": Mark(tmp_path / "mark")}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello world"}[damage])
    with pytest.raises(ValueError, match=r"state\.pt is not a state of this network") as caught:
        train(Gain(), sampler(), Training(**QUICK), tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "mark").exists()


def test_state_of_another_network(tmp_path: Path) -> None:
    train(Gain(), sampler(), Training(**QUICK), tmp_path)
    with pytest.raises(ValueError, match="is not a state of this network") as caught:
        train(network(), sampler(), Training(**QUICK), tmp_path)
    assert "\n" not in str(caught.value)


def test_moving_average() -> None:
    """a <- a + (1 - d)(p - a), d = min(ema, (1 + n) / (10 + n)) at the n-th update."""
    model = Gain()
    state = State(model, Training(ema=0.3))
    average = float(model.gain.detach())
    for n in range(1, 8):
        with torch.no_grad():
            model.gain += 0.5
        state.update_average()
        decay = min(0.3, (1 + n) / (10 + n))
        average += (1 - decay) * (float(model.gain.detach()) - average)
        assert float(state.average[0]) == pytest.approx(average)
    current = float(model.gain.detach())
    with state.averaged():
        assert float(model.gain.detach()) == pytest.approx(average)
    assert float(model.gain.detach()) == current
    with pytest.raises(RuntimeError), state.averaged():
        raise RuntimeError
    assert float(model.gain.detach()) == current
    state.load_average()
    assert float(model.gain.detach()) == pytest.approx(average)


def test_without_moving_average(tmp_path: Path) -> None:
    state = State(Gain(), Training(ema=0.0))
    with torch.no_grad():
        state.parameters[0].fill_(7.0)
    state.update_average()
    assert float(state.average[0]) == 7.0


def test_learning_rate() -> None:
    plain = Training(steps=110, warmup=10, final=0.1)
    assert [plain.rate(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert plain.rate(10) == 1.0
    assert plain.rate(60) == pytest.approx(0.55)  # half way down the cosine
    assert plain.rate(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert plain.rate(110) == plain.rate(500) == pytest.approx(0.1)
    held = Training(steps=100, warmup=0, hold=0.5, final=0.0)
    assert held.rate(0) == held.rate(50) == 1.0
    assert held.rate(75) == pytest.approx(0.5) and held.rate(100) == pytest.approx(0.0)


def test_learning_rate_reaches_each_group(tmp_path: Path) -> None:
    model, _ = quantize(network(), "direct", [(y, m) for _, m, y in validation_batches(sampler(), 1)], bits=4)
    settings = Training(learning_rate=1e-3, scale_learning_rate=1e-4, optimizer="adamw", weight_decay=0.2)
    state = State(model, settings)
    state.set_rate(0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = 0
    for group in state.optimizers[0].param_groups:
        for parameter in group["params"]:
            seen += 1
            name = names[id(parameter)]
            scale = "_grid." in name
            assert group["lr"] == pytest.approx(0.5e-4 if scale else 0.5e-3), name
            assert group["weight_decay"] == (0.2 if name.endswith("layer.weight") else 0.0), name
    assert seen == len(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; wanted more than 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"ema": 1.5}, "ema is 1.5; wanted 0 to 1"),
        ({"hold": -0.1}, "hold is -0.1"),
        ({"minutes": 0.0}, "minutes is 0.0; wanted more than 0"),
        ({"save_minutes": 0.0}, "save_minutes is 0.0"),
        ({"log_every": 0}, "log_every is 0"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**changes)


@pytest.mark.parametrize(("name", "value"), [("loss", "l2"), ("optimizer", "sgd")])
def test_bad_choices(name: str, value: str) -> None:
    settings = object.__new__(Training)  # in tests, the type checker would refuse first
    for field, given in {**vars(Training()), name: value}.items():
        object.__setattr__(settings, field, given)
    with pytest.raises(ValueError, match=f"{name} = '{value}'; wanted one of"):
        settings.__post_init__()


class Broken(Gain):
    """Infinite from the first step on."""

    def forward(self, measurement: Tensor, mask: Tensor) -> Tensor:
        return super().forward(measurement, mask) * math.inf


def test_infinite_loss_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = Broken()
    with pytest.raises(ValueError, match=r"not finite for 21 steps .*; lower learning_rate"):
        train(model, sampler(), Training(**{**QUICK, "steps": 100}), tmp_path)
    assert float(model.gain.detach()) == pytest.approx(0.3)


class Hiccup(Gain):
    """Not a number at its third call only."""

    calls = 0

    def forward(self, measurement: Tensor, mask: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(measurement, mask) * (math.nan if self.calls == 3 else 1.0)


def test_one_infinite_step_is_skipped(tmp_path: Path) -> None:
    model = Hiccup()
    result = train(model, sampler(), Training(**QUICK), tmp_path)
    assert result.reason == "finished" and math.isfinite(float(model.gain.detach()))
    assert float(model.gain.detach()) != pytest.approx(0.3)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """Adam hides the size of gradients, so its second moment is looked at."""
    train(Gain(), sampler(), Training(**{**QUICK, "steps": 1, "clip_norm": 1e-3}), tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    first = saved["optimizers"][0]["state"][0]["exp_avg"] / 0.1
    assert float(first.abs()) == pytest.approx(1e-3, rel=1e-3)


def test_distillation(tmp_path: Path) -> None:
    """With the weight on the teacher, the student's output moves towards the teacher's."""
    teacher, student = network(), network()
    with torch.no_grad():
        teacher.vrm[4].get_parameter("weight").mul_(1.5)
    settings = Training(
        steps=40, warmup=2, learning_rate=5e-3, bf16=False, distill_output=20.0, distill_features=0.1, ema=0.5
    )
    _, mask, measurement = validation_batches(sampler(seed=4), 1)[0]

    def distance() -> float:
        with torch.no_grad():
            return float((student(measurement, mask) - teacher(measurement, mask)).square().mean())

    before, weights = distance(), {key: value.clone() for key, value in teacher.state_dict().items()}
    train(student, sampler(), settings, tmp_path, teacher=teacher, blocks=["resdnet_list.0", "fem"])
    assert distance() < 0.3 * before
    assert all(torch.equal(value, weights[key]) for key, value in teacher.state_dict().items())
    assert not student.fem._forward_hooks
    with pytest.raises(ValueError, match="without a teacher"):
        train(student, sampler(), settings, tmp_path / "new")


def test_runs_outside_the_main_thread(tmp_path: Path) -> None:
    """Where signals cannot be caught."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train(Gain(), sampler(), Training(**QUICK), tmp_path)))
    thread.start()
    thread.join()
    assert results[0].reason == "finished"


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(Gain(), sampler(), Training(**QUICK), tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_files_of_a_run(tmp_path: Path) -> None:
    train(Gain(), sampler(), Training(**QUICK), tmp_path / "new" / "run")
    names = {path.name for path in (tmp_path / "new" / "run").iterdir()}
    assert names == {"state.pt", "log.jsonl", "settings.json"}
    assert json.loads((tmp_path / "new" / "run" / "settings.json").read_text())["steps"] == 12


def test_validation_psnr_by_its_formula() -> None:
    model, batches = Gain(), validation_batches(sampler(), 2)
    values = []
    for video, mask, measurement in batches:
        with torch.no_grad():
            error = (model(measurement, mask)[:, 0] - video).square().mean(dim=(2, 3))
        values.append(float((-10 * error.log10()).mean()))
    assert validation_psnr(model, batches, False) == pytest.approx(sum(values) / 2)


def torchrun(folder: Path, settings: dict[str, Any], seconds: float = 0.0) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return start + command(folder, settings, seconds)[1:]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """They see different samples, agree on the weights, and resume exactly."""
    settings = {**QUICK, "save_minutes": 60.0}
    for folder in ("one", "two", "cut"):
        limits = [{"minutes": 1e-9}, {"minutes": 1e-9}, {}] if folder == "cut" else [{}]
        for limit in limits:
            program = command if folder == "one" else torchrun
            done = subprocess.run(
                program(tmp_path / folder, {**settings, **limit}),
                env=environment(),
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
    assert log(tmp_path / "cut") == log(tmp_path / "two") != log(tmp_path / "one")
    assert log(tmp_path / "two")[0] == log(tmp_path / "one")[0]  # rank 0 begins with the same samples
    same_weights(tmp_path / "cut", tmp_path / "two")
    with pytest.raises(AssertionError):
        same_weights(tmp_path / "one", tmp_path / "two")
