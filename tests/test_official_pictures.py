"""Official super-resolution weights are recognised, and reach the published PSNR, which proves every layer of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bitlens.data.pairs import load_pairs
from bitlens.inference.images import enlarge
from bitlens.metrics import psnr_y
from bitlens.networks.edsr import EDSR
from bitlens.networks.imdn import IMDN
from bitlens.networks.ngswin import NGswin
from bitlens.networks.pan import PAN
from bitlens.networks.smfanet import SMFANet
from bitlens.networks.swinir import SwinIR
from bitlens.official import from_official, load_official

NETWORKS = {
    "light": SwinIR(3, 8, 2, 2, 2, window=4, hidden=12),
    "classical": SwinIR(4, 8, 1, 2, 2, window=4, hidden=12, features=6),
    "NGswin": NGswin(4, 16, (1, 2, 1, 1), (3, 2, 2, 3), window=4, hidden=16),
    "EDSR": EDSR(4, 4, 3),
    "IMDN": IMDN(3, 16, 3),
    "PAN": PAN(4, 8, 4, 3),
    "SMFANet": SMFANet(2, 8, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_read_off_the_weights(name: str) -> None:
    network = NETWORKS[name]
    found: Any = from_official({f"module.{key}": value for key, value in network.state_dict().items()})
    assert type(found) is type(network) and found.config == network.config and not found.training
    assert set(found.key_report.mapped.values()) == set(network.state_dict())
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in network.state_dict().items())


def test_constants_are_reported() -> None:
    mean = {"sub_mean.weight": torch.eye(3)[..., None, None], "add_mean.bias": torch.ones(3)}
    network: Any = from_official({**NETWORKS["EDSR"].state_dict(), **mean})
    assert network.key_report.idle == list(mean)
    mask = {"encoder_layer1.blocks.0.attn_mask": torch.zeros(1, 16, 16)}
    network = from_official({**NETWORKS["NGswin"].state_dict(), **mask})
    assert network.key_report.idle == list(mask)


@pytest.mark.parametrize("name", NETWORKS)
def test_missing_and_unknown_keys_are_listed(name: str) -> None:
    weights = dict(NETWORKS[name].state_dict())
    last = list(weights)[-1]
    weights["extra.weight"] = weights.pop(last)
    with pytest.raises(ValueError, match=f"unknown keys: extra.weight; missing keys: {last}"):
        from_official(weights)


def test_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="bits=4 was given with float weights"):
        from_official(NETWORKS["SMFANet"].state_dict(), bits=4)  # whose alpha is no quantizer's


@pytest.mark.parametrize(
    ("file", "kind", "scale", "psnr"),
    [
        ("NGswin_x3.pth", NGswin, 3, 31.3587),
        ("IMDN_x4.pth", IMDN, 4, 28.5594),
        ("PANx4_DF2K.pth", PAN, 4, 28.3496),
        ("SMFANet_plus_DF2K_100w_x4SR.pth", SMFANet, 4, 29.3704),
    ],
)
def test_a_test_picture(data_root: Path, file: str, kind: type, scale: int, psnr: float) -> None:
    """The butterfly of Set5, which belongs to averages that are the published ones to 0.01 dB (results/sr)."""
    network = load_official(data_root / "weights" / "sr" / file)
    assert isinstance(network, kind) and network.scale == scale
    (pair,) = (pair for pair in load_pairs("set5", scale, data_root) if pair.name == "butterfly")
    low, high = pair.read()
    assert psnr_y(enlarge(network, low, "test"), high, shave=scale) == pytest.approx(psnr, abs=2e-3)
