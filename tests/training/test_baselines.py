"""Q-ViT and PAMS train in the one loop, with the float network's similarities or attention as their teacher."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitlens.data.clips import Clips, ClipSampler, measurements
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.training.loop import train
from bitlens.training.settings import Training

QUICK: dict[str, Any] = dict(steps=3, warmup=1, log_every=1, bf16=False)


def sampler() -> ClipSampler:
    ramp = np.linspace(0, 250, 24 * 24).reshape(24, 24)
    video = np.stack([np.roll(ramp, 3 * t, axis=1) for t in range(10)]).astype(np.uint8)
    return ClipSampler(Clips([video], ["ramp"]), frames=4, crop=8, batch=2, seed=1)


@pytest.mark.parametrize(
    ("method", "term", "learned"),
    [("qvit", "distill_similarity", "norm_q.weight"), ("pams", "distill_attention", "input_grid.alpha")],
)
def test_a_baseline_trains(method: str, term: str, learned: str, tmp_path: Path) -> None:
    """The term changes where training goes; normalization and truncation move with the weights."""
    clips, teacher = sampler(), EfficientSCI(8, 1, 2)
    ends = []
    for weight in (0.0, 5.0):
        network, _ = quantize(teacher, method, measurements(clips, 1), bits=4)
        start = {key: value.clone() for key, value in network.state_dict().items() if learned in key}
        settings = Training(**{**QUICK, term: weight})
        blocks = ["resdnet_list.0"]
        result = train(network, clips, settings, tmp_path / str(weight), teacher=teacher, blocks=blocks)
        assert (result.step, result.reason) == (3, "finished")
        assert start and any(not torch.equal(network.state_dict()[key], value) for key, value in start.items())
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert bool(ends[1].isfinite().all()) and not torch.equal(*ends)
    with pytest.raises(ValueError, match="without a teacher"):
        train(network, clips, Training(**{**QUICK, term: 1.0}), tmp_path / "none")


def test_runs_of_before_a_setting_existed_go_on(tmp_path: Path) -> None:
    """A setting that the run's record lacks had its default."""
    network, clips, state = EfficientSCI(8, 1, 2), sampler(), tmp_path / "state.pt"
    train(network, clips, Training(**QUICK), tmp_path)
    saved = torch.load(state, weights_only=True)
    del saved["settings"]["distill_similarity"]
    torch.save(saved, state)
    assert train(network, clips, Training(**{**QUICK, "steps": 4}), tmp_path).step == 4
    changed = Training(**{**QUICK, "steps": 5}, distill_similarity=2.0)
    with pytest.raises(ValueError, match=r"other settings: distill_similarity \(0.0 -> 2.0\)"):
        train(network, clips, changed, tmp_path, teacher=EfficientSCI(8, 1, 2))
