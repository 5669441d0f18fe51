"""The laws of linear operators, over one list of cameras, against the matrix of each written out; and shrinking."""

from functools import cache

import pytest
import torch
from torch import Tensor

from bitlens.operators import Downsample, VideoSCI, bicubic_weights, normalized_measurement


def binary(*shape: int, seed: int = 0) -> Tensor:
    """A random 0/1 mask in which the first pixel is always closed and the last one always open."""
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5).double()
    mask[..., 0, 0], mask[..., -1, -1] = 0, 1
    return mask


def real(*shape: int, seed: int = 0) -> Tensor:
    """A random mask of any values in [0, 1.5), as a calibrated camera has, with one closed pixel."""
    mask = 1.5 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()
    mask[..., 0, 0] = 0
    return mask


CAMERAS = {
    "binary": VideoSCI(binary(8, 4, 5)),
    "real": VideoSCI(real(8, 4, 5)),
    "1 frame": VideoSCI(real(1, 6, 6)),
    "14 frames, odd size": VideoSCI(binary(14, 5, 3)),
    "one row": VideoSCI(binary(3, 1, 7)),
    "a mask per item": VideoSCI(real(2, 5, 4, 4)),
    "a batch of one mask": VideoSCI(binary(1, 5, 4, 4)),
    "rggb": VideoSCI(binary(8, 4, 4), bayer="rggb"),
    "bggr, odd size": VideoSCI(real(5, 5, 3), bayer="bggr"),
    "grbg, a mask per item": VideoSCI(real(2, 3, 3, 5), bayer="grbg"),
    "gbrg, 1 frame": VideoSCI(binary(1, 4, 6), bayer="gbrg"),
}
BATCH = 2
every_camera = pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)


def video_of(camera: VideoSCI, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, camera.channels, camera.frames, camera.height, camera.width).double()


def measurement_of(camera: VideoSCI, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, camera.height, camera.width).double()


@cache
def matrix_of(camera: VideoSCI, item: int) -> Tensor:
    """A of one batch item as a matrix (h w) x (c t h w), from the definition, one entry at a time."""
    c, t, h, w = camera.channels, camera.frames, camera.height, camera.width
    mask = camera.mask[item % len(camera.mask)]
    matrix = torch.zeros(h, w, c, t, h, w).double()
    for frame in range(t):
        for row in range(h):
            for column in range(w):
                letter = camera.bayer[2 * (row % 2) + column % 2] if camera.bayer else "grey"
                channel = {"grey": 0, "r": 0, "g": 1, "b": 2}[letter]
                matrix[row, column, channel, frame, row, column] = mask[frame, row, column]
    return matrix.reshape(h * w, c * t * h * w)


@every_camera
def test_A_is_its_matrix(camera: VideoSCI):
    video = video_of(camera)
    expected = [matrix_of(camera, i) @ video[i].flatten() for i in range(BATCH)]
    torch.testing.assert_close(camera.A(video).flatten(1), torch.stack(expected))


@every_camera
def test_A_adjoint_is_the_adjoint(camera: VideoSCI):
    video, measurement = video_of(camera), measurement_of(camera)
    left = (camera.A(video) * measurement).sum()
    right = (video * camera.A_adjoint(measurement)).sum()
    torch.testing.assert_close(left, right)


@every_camera
def test_A_dagger_is_the_pseudo_inverse(camera: VideoSCI):
    measurement = measurement_of(camera)
    expected = [torch.linalg.pinv(matrix_of(camera, i)) @ measurement[i].flatten() for i in range(BATCH)]
    torch.testing.assert_close(camera.A_dagger(measurement).flatten(1), torch.stack(expected))


@every_camera
def test_A_dagger_explains_open_pixels_and_is_zero_at_closed_ones(camera: VideoSCI):
    measurement = measurement_of(camera)
    opened = (camera.mask_energy > 0).expand_as(measurement)
    torch.testing.assert_close(camera.A(camera.A_dagger(measurement)), measurement * opened)
    closed = ~opened[:, None, None].expand_as(camera.A_dagger(measurement))
    assert (camera.A_dagger(measurement)[closed] == 0).all()


@every_camera
def test_projection_is_idempotent(camera: VideoSCI):
    video = video_of(camera)
    once = camera.A_dagger(camera.A(video))
    torch.testing.assert_close(camera.A_dagger(camera.A(once)), once)
    assert not torch.allclose(once, video)


@every_camera
def test_mask_energy_is_the_diagonal_of_A_A_transposed(camera: VideoSCI):
    for i in range(BATCH):
        matrix = matrix_of(camera, i)
        energy = camera.mask_energy[i % len(camera.mask)].flatten()
        torch.testing.assert_close(matrix @ matrix.T, torch.diag(energy))


@every_camera
def test_mask_sum_is_the_measurement_of_a_white_video(camera: VideoSCI):
    white = torch.ones_like(video_of(camera))
    torch.testing.assert_close(camera.A(white), camera.mask_sum.expand(BATCH, -1, -1))


@every_camera
@pytest.mark.parametrize("gamma", [0.0, 0.3, 20.0])
def test_prox_l2_solves_its_normal_equations(camera: VideoSCI, gamma: float):
    video, measurement = video_of(camera), measurement_of(camera)
    expected = []
    for i in range(BATCH):
        matrix = matrix_of(camera, i)
        normal = gamma * matrix.T @ matrix + torch.eye(matrix.shape[1]).double()
        right = gamma * matrix.T @ measurement[i].flatten() + video[i].flatten()
        expected.append(torch.linalg.solve(normal, right))
    found = camera.prox_l2(video, measurement, gamma)
    torch.testing.assert_close(found.flatten(1), torch.stack(expected))


@every_camera
def test_a_large_gamma_projects(camera: VideoSCI):
    video, measurement = video_of(camera), measurement_of(camera)
    projected = video + camera.A_dagger(measurement - camera.A(video))
    opened = camera.mask_energy[camera.mask_energy > 0]
    tolerance = 10 / (1e9 * float(opened.min()))
    torch.testing.assert_close(camera.prox_l2(video, measurement, 1e9), projected, rtol=tolerance, atol=tolerance)


@every_camera
def test_sizes(camera: VideoSCI):
    video = camera.A_adjoint(measurement_of(camera))
    assert video.shape == (BATCH, camera.channels, camera.frames, camera.height, camera.width)
    assert camera.mask.shape[1:] == (camera.frames, camera.height, camera.width)
    assert camera.mask_sum.shape == camera.mask_energy.shape == (len(camera.mask), *video.shape[-2:])
    assert camera.channels == (3 if camera.bayer else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bayer", [None, "rggb"])
def test_dtype_comes_from_the_input(dtype: torch.dtype, bayer: str | None):
    camera = VideoSCI(real(3, 4, 4).float(), bayer=bayer)
    video = video_of(camera).to(dtype)
    measurement = camera.A(video)
    made = [measurement, camera.A_adjoint(measurement), camera.A_dagger(measurement)]
    made.append(camera.prox_l2(video, measurement, 0.5))
    assert {tensor.dtype for tensor in made} == {dtype}
    assert camera.mask.dtype == torch.float32


@pytest.mark.parametrize("bayer", [None, "rggb"])
def test_device_comes_from_the_input(bayer: str | None):
    camera = VideoSCI(real(3, 4, 4), bayer=bayer)
    video = video_of(camera).to("meta")
    measurement = camera.A(video)
    made = [measurement, camera.A_adjoint(measurement), camera.A_dagger(measurement)]
    made.append(camera.prox_l2(video, measurement, 0.5))
    assert {tensor.device.type for tensor in made} == {"meta"}


def test_a_float32_mask_is_inverted_to_the_precision_of_a_float64_measurement():
    camera = VideoSCI(real(5, 4, 4).float() + 0.1)
    measurement = measurement_of(camera)
    back = camera.A(camera.A_dagger(measurement))
    torch.testing.assert_close(back, measurement, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("unit", [1e-12, 1e-3, 255.0, 1e12])
def test_A_dagger_follows_the_unit_of_the_mask(unit: float):
    mask, measurement = real(4, 5, 5).float(), torch.rand(1, 5, 5)
    expected = VideoSCI(mask).A_dagger(measurement)
    torch.testing.assert_close(VideoSCI(mask * unit).A_dagger(measurement * unit), expected)


def test_gradients_reach_the_video_and_the_mask():
    mask = (real(3, 2, 2) + 0.1).requires_grad_()
    video = torch.randn(1, 1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: VideoSCI(m).A(v), (mask, video))


def test_normalized_measurement_is_the_mean_of_the_frames_that_a_pixel_saw():
    mask = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]]).unsqueeze(0)  # 1 t h w
    video = torch.tensor([[[0.2, 0.4, 0.9]], [[0.5, 0.8, 0.9]]]).unsqueeze(0).unsqueeze(0)
    measurement = VideoSCI(mask).A(video)
    found = normalized_measurement(measurement, mask)
    torch.testing.assert_close(found, torch.tensor([[[0.2, 0.6, 0.0]]]))


def test_normalized_measurement_weighs_the_frames_of_a_real_mask():
    mask = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    measurement = VideoSCI(mask).A(torch.tensor([0.9, 0.3]).view(1, 1, 2, 1, 1))
    torch.testing.assert_close(normalized_measurement(measurement, mask), torch.full((1, 1, 1), 0.7))


def test_normalized_measurement_takes_one_mask_or_one_per_item():
    masks = binary(2, 3, 4, 4)
    measurement = torch.rand(2, 4, 4).double()
    one = normalized_measurement(measurement, masks[:1])
    each = normalized_measurement(measurement, masks)
    assert one.shape == each.shape == measurement.shape
    torch.testing.assert_close(one[0], each[0])
    torch.testing.assert_close(each[1], normalized_measurement(measurement[1:], masks[1:])[0])
    assert (each[:, 0, 0] == measurement[:, 0, 0]).all()  # a sum of 0 counts as 1


def changed(mask: Tensor, index: tuple, value: float) -> Tensor:
    mask = mask.clone()
    mask[index] = value
    return mask


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(0, 4, 4), r"shape \(0, 4, 4\)"),
        (torch.ones(2, 4, 0), r"shape \(2, 4, 0\)"),
        (changed(torch.ones(2, 4, 4), (0, 1, 1), float("nan")), "1 value.* NaN or infinite"),
        (changed(torch.ones(2, 4, 4), (0, 1), float("inf")), "4 value.* NaN or infinite"),
        (changed(torch.ones(2, 4, 4), (1, 2, 3), -0.25), "down to -0.25"),
        (torch.zeros(2, 4, 4), "zero everywhere; .*check the file"),
        (changed(torch.ones(5, 4, 4), (3,), 0), r"1 frame\(s\) .*zero everywhere: 3;"),
        (changed(torch.ones(2, 5, 4, 4), (1, 3), 0), r"zero everywhere: \(1, 3\);"),
    ],
)
def test_a_mask_that_no_camera_has_is_refused(mask: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        VideoSCI(mask)


@pytest.mark.parametrize("mask", [torch.ones(4, 4), torch.ones(1, 1, 2, 4, 4)])
def test_a_mask_of_other_dimensions_is_refused(mask: Tensor):
    with pytest.raises((ValueError, TypeError)):  # TypeError: the shape check of the test run is quicker
        VideoSCI(mask)


def test_what_is_not_float_is_refused():
    with pytest.raises(TypeError):
        VideoSCI(torch.ones(2, 4, 4, dtype=torch.uint8))
    with pytest.raises(TypeError):
        VideoSCI(torch.ones(2, 4, 4)).A(torch.ones(1, 1, 2, 4, 4, dtype=torch.int32))


def test_an_unknown_mosaic_is_refused():
    with pytest.raises(ValueError, match="'rgb'; wanted one of rggb, bggr, grbg, gbrg"):
        VideoSCI(torch.ones(2, 4, 4), bayer="rgb")


@pytest.mark.parametrize("shape", [(1, 1, 7, 4, 6), (1, 1, 8, 6, 4), (1, 1, 8, 4, 5), (1, 3, 8, 4, 6)])
def test_a_video_of_another_size_is_refused_with_both_shapes(shape: tuple[int, ...]):
    camera = VideoSCI(torch.ones(8, 4, 6))
    with pytest.raises(ValueError) as caught:
        camera.A(torch.ones(shape))
    assert str(shape) in str(caught.value)
    assert "(1, 8, 4, 6)" in str(caught.value)


@pytest.mark.parametrize("method", ["A_adjoint", "A_dagger"])
@pytest.mark.parametrize("shape", [(1, 6, 4), (1, 4, 5), (2, 1, 6)])
def test_a_measurement_of_another_size_is_refused_with_both_shapes(method: str, shape: tuple[int, ...]):
    camera = VideoSCI(torch.ones(8, 4, 6))
    with pytest.raises(ValueError) as caught:
        getattr(camera, method)(torch.ones(shape))
    assert str(shape) in str(caught.value)
    assert "(1, 8, 4, 6)" in str(caught.value)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_is_not_the_masks_is_refused(batch: int):
    camera = VideoSCI(torch.ones(2, 8, 4, 6))
    with pytest.raises(ValueError, match="2 masks"):
        camera.A(torch.ones(batch, 1, 8, 4, 6))
    with pytest.raises(ValueError, match="2 masks"):
        camera.A_dagger(torch.ones(batch, 4, 6))


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
def test_a_gamma_that_has_no_minimum_is_refused(gamma: float):
    camera = VideoSCI(torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match=f"gamma is {gamma}"):
        camera.prox_l2(torch.ones(1, 1, 2, 4, 4), torch.ones(1, 4, 4), gamma)


def test_prox_l2_refuses_another_batch():
    camera = VideoSCI(torch.ones(2, 4, 4))
    with pytest.raises((ValueError, TypeError)):  # TypeError: the shape check of the test run is quicker
        camera.prox_l2(torch.ones(3, 1, 2, 4, 4), torch.ones(1, 4, 4), 1.0)


SHRINKING = [(1, 3, 4), (2, 8, 6), (2, 2, 20), (3, 9, 3), (4, 24, 4), (4, 4, 4)]
every_shrinking = pytest.mark.parametrize(("scale", "height", "width"), SHRINKING)


@every_shrinking
def test_shrinking_is_its_definition(scale: int, height: int, width: int):
    """Keys's cubic, widened by the scale, one output pixel after the other, on the mirrored image."""
    image = torch.randn(2, 3, height, width).double()
    found = Downsample(scale).A(image)
    assert found.shape == (2, 3, height // scale, width // scale)

    def shrink(line: Tensor, i: int) -> Tensor:
        total, weights = torch.zeros(()).double(), 0.0
        centre = scale * (i + 0.5) - 0.5
        for j in range(-3 * scale, len(line) + 3 * scale):
            x = abs(centre - j) / scale
            weight = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else max(2 - x, 0) ** 2 * (1 - x) / 2
            mirrored = [*range(len(line)), *reversed(range(len(line)))][j % (2 * len(line))]
            total, weights = total + weight * line[mirrored], weights + weight
        return total / weights

    rows = torch.stack([shrink(image[0, 1, :, column], 0) for column in range(width)])
    torch.testing.assert_close(found[0, 1, 0, -1], shrink(rows, width // scale - 1))


@every_shrinking
def test_shrinking_has_an_adjoint(scale: int, height: int, width: int):
    operator, image = Downsample(scale), torch.randn(2, 3, height, width).double()
    small = torch.randn(2, 3, height // scale, width // scale).double()
    torch.testing.assert_close((operator.A(image) * small).sum(), (image * operator.A_adjoint(small)).sum())


@every_shrinking
def test_shrinking_keeps_what_is_flat(scale: int, height: int, width: int):
    torch.testing.assert_close(bicubic_weights(height, scale).sum(1), torch.ones(height // scale).double())
    flat = torch.full((1, 1, height, width), 0.3)
    torch.testing.assert_close(Downsample(scale).A(flat), flat[..., : height // scale, : width // scale])
    levels = (255 * torch.rand(1, 3, height, width)).to(torch.uint8)
    made = Downsample(scale).shrink_levels(levels)
    assert made.dtype == torch.uint8
    if scale == 1:
        assert torch.equal(made, levels)


def test_shrinking_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="scale 0; wanted a whole number >= 1"):
        Downsample(0)
    with pytest.raises(
        ValueError, match=r"shape \(1, 3, 5, 4\); wanted \(b, c, h, w\), h and w multiples of 2: crop it"
    ):
        Downsample(2).A(torch.ones(1, 3, 5, 4))
    assert repr(Downsample(3)) == "Downsample(3)"
