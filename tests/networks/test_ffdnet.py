"""FFDNet: sizes, grey as each colour by itself, official weights, and what the published ones reach."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.data.pairs import load_pairs, read_picture
from bitlens.networks.ffdnet import FFDNet
from bitlens.official import from_official, load_official


@pytest.mark.parametrize("config", [{}, {"channels": 1}, {"channels": 1, "noise": 25}])
def test_any_size(config: dict[str, int]) -> None:
    torch.manual_seed(0)
    network = FFDNet(**{"dim": 8, "depth": 3, **config})
    image = torch.rand(2, 3, 9, 7)
    restored = network(image)
    assert restored.shape == image.shape
    blind = not config.get("noise")
    assert torch.allclose(restored, image) == blind  # a blind one begins as the identity
    with pytest.raises(ValueError, match="channels=2"):
        FFDNet(2)


def test_grey_is_each_colour_by_itself() -> None:
    torch.manual_seed(0)
    network = FFDNet(1, 8, 3, noise=25)
    image = torch.rand(1, 3, 8, 8)
    each = [network(image[:, [c, c, c]])[:, 0] for c in range(3)]
    torch.testing.assert_close(network(image)[0], torch.cat(each))


def test_batch_normalization_is_folded() -> None:
    """A published state dict of three layers, beside the same computed layer by layer."""
    random = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(*shape, 3, 3, generator=random) for shape in ((32, 5), (32, 32), (4, 32)))
    norm = torch.nn.BatchNorm2d(32).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        assert tensor is not None
        tensor.copy_(torch.randn(32, generator=random))
    assert norm.running_var is not None
    norm.running_var.copy_(torch.rand(32, generator=random) + 0.5)
    prefix = "module.intermediate_dncnn.itermediate_dncnn"
    state = {f"{prefix}.{i}.weight": kernel for i, kernel in ((0, first), (2, second), (5, third))}
    state |= {f"{prefix}.3.{name}": value for name, value in norm.state_dict().items() if value.ndim}
    network = from_official(state)
    assert network.config == {"channels": 1, "dim": 32, "depth": 3, "noise": 25}
    image = torch.rand(1, 1, 6, 6, generator=random)
    x = torch.nn.functional.pixel_unshuffle(image, 2)
    x = torch.cat([torch.full_like(x[:, :1], 25 / 255), x], 1)
    x = torch.relu(torch.conv2d(x, first, padding=1))
    x = torch.relu(norm(torch.conv2d(x, second, padding=1)))
    wanted = image - torch.nn.functional.pixel_shuffle(torch.conv2d(x, third, padding=1), 2)
    torch.testing.assert_close(network(image.expand(1, 3, 6, 6))[:, :1], wanted, rtol=1e-3, atol=1e-3)
    del state[f"{prefix}.3.running_mean"]
    with pytest.raises(ValueError, match="not whole FFDNet's"):
        from_official(state)


def test_published_weights(data_root: Path) -> None:
    """Noise of 25 on cuts of three grey images: at least 6 dB of it gone, as the published weights are known for."""
    network, gains = load_official(data_root / "weights/denoise/ffdnet_gray.pth"), []
    for pair in load_pairs("set14", 1, data_root)[:3]:
        grey = read_picture(pair.high)[:1, :128, :128] / 255
        noisy = grey + 25 / 255 * np.random.default_rng(0).standard_normal(grey.shape)
        with torch.no_grad():
            found = network(torch.from_numpy(noisy).float()[None].expand(1, 3, -1, -1))[0, :1].numpy()
        gains.append(10 * np.log10(np.square(noisy - grey).mean() / np.square(found - grey).mean()))
    assert np.mean(gains) > 6
