"""The settings of a training run: one frozen dataclass, checked; torch-free, so that `--help` is immediate."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["FREE_TO_CHANGE", "Training"]

FREE_TO_CHANGE = {"steps", "minutes", "save_minutes", "log_every", "validate_every", "compile"}
"""Settings that a resumed run may change: they do not alter what a step does, or are meant to be extended."""


@dataclass(frozen=True)
class Training:
    """Settings of a training run. The defaults are for a small machine; recipes hold the published ones."""

    steps: int = 10_000
    """Optimizer steps in all; the learning rate follows step / steps."""
    minutes: float | None = None
    """Stop (and save) after this many minutes of this process. None: run to the last step."""
    learning_rate: float = 1e-3
    """Peak learning rate of the weights."""
    scale_learning_rate: float | None = None
    """Peak learning rate of scales and zero points. None: a tenth of the weights', as 8-bit scales are small."""
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    """Adam as the papers, AdamW, or Muon for the weights of layers; scales, biases and shifts never decay."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of what Muon moves; the rest moves by Adam with the one above."""
    beta2: float = 0.999
    """Adam's memory of squared gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW and Muon."""
    warmup: int = 100
    """Steps of linear warm-up."""
    hold: float = 0.0
    """Share of the steps at the peak rate before the cosine descent begins."""
    final: float = 0.01
    """Learning rate at the last step, relative to the peak."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns it off."""
    ema: float = 0.999
    """Decay of the moving average of the weights that is validated and returned; 0 turns it off."""
    loss: Literal["rmse", "mse", "sample-rmse", "l1", "charbonnier", "l1-frequency"] = "rmse"
    """RMSE as Q-SCI's code, MSE as its paper, or RMSE per sample; for images mean absolute error, one that is smooth at
    0, or one with the error of frequencies too, for sharper images with less PSNR."""
    early_stages: float = 0.0
    """Weight of the loss of each stage of an unfolding network but the last."""
    distill_output: float = 0.0
    """Weight of the RMSE to the float teacher's output."""
    distill_features: float = 0.0
    """Weight of the distance to the float teacher's normalized features."""
    distill_similarity: float = 0.0
    """Weight of the distance to the float teacher's similarities of queries and of keys (Q-ViT's DGD)."""
    distill_attention: float = 0.0
    """Weight of the distance to the float teacher's spatial attention of features (PAMS's SKT)."""
    bf16: bool = True
    """Convolutions and products in bfloat16, where the device computes in it; weights and optimizer stay float32."""
    compile: bool = False
    """Compile the network with torch.compile: a minute or two at the start, then up to twice as fast on a CPU."""
    seed: int = 0
    """Decides crops, masks and augmentation."""
    save_minutes: float = 5.0
    """Minutes between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    validate_every: int = 1000
    """Steps between validations."""

    def __post_init__(self):
        for name in ("optimizer", "loss"):
            choices = get_args(type(self).__annotations__[name])
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}; wanted one of {', '.join(choices)}; choose one")
        for name in ("steps", "learning_rate", "log_every", "validate_every", "save_minutes", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted more than 0; change the setting")
        for name in ("early_stages", "distill_output", "distill_features", "distill_similarity", "distill_attention"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a number from 0; change the setting")
        for name in ("hold", "final", "ema", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 0 to 1; change the setting")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; wanted more than 0; leave it out for no limit")

    def rate(self, step: int) -> float:
        """Learning rate relative to the peak: warm-up, hold, then a half cosine down to `final`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        descent = max(0.0, done - self.hold) / max(1e-9, 1 - self.hold)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, descent)))
