"""The losses: RMSE (Q-SCI's code), MSE (its paper), and distillation from the float network.

Losses take videos (b, c, t, h, w) or images, distances the same tensor of student and teacher; each returns one number.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.operators import VideoSCI

Video = Float[Tensor, "b c *size"]
"""Or images: size is (t, h, w), or (h, w)."""
Loss = Callable[[Tensor, Tensor], Tensor]

EPSILON = 1e-8  # keeps the square root differentiable at zero


def rmse(video: Video, reference: Video) -> Float[Tensor, ""]:
    """sqrt of the mean squared error of the whole batch [Q-SCI's official code]."""
    return ((video - reference).square().mean() + EPSILON).sqrt()


def mse(video: Video, reference: Video) -> Float[Tensor, ""]:
    """Mean squared error [Q-SCI eq. 12]."""
    return (video - reference).square().mean()


def sample_rmse(video: Video, reference: Video) -> Float[Tensor, ""]:
    """Mean over samples of each one's RMSE: easy and hard clips pull with more even force than in `rmse`.

    Differs: neither paper's nor code's loss. PSNR averages logarithms, and this is nearer to that.
    """
    return ((video - reference).square().flatten(1).mean(1) + EPSILON).sqrt().mean()


def l1(video: Video, reference: Video) -> Float[Tensor, ""]:
    """Mean absolute error."""
    return (video - reference).abs().mean()


def charbonnier(video: Video, reference: Video) -> Float[Tensor, ""]:
    """Mean of sqrt(error^2 + 1e-6): the absolute error, smooth at 0 [Charbonnier et al., ICIP 1994]."""
    return ((video - reference).square() + 1e-6).sqrt().mean()


def l1_frequency(video: Video, reference: Video) -> Float[Tensor, ""]:
    """Mean absolute error, and 0.1 times that of the two-dimensional orthonormal Fourier transforms.

    An average of all that is likely has less of the high frequencies than any of it: their own error makes up for that,
    and needs no network of features that would have to be downloaded [Cho et al., ICCV 2021, eq. 7, which leaves the
    transform unnormalized]. PSNR is not better for it.
    """
    difference = (video - reference).float()
    return difference.abs().mean() + 0.1 * torch.fft.fft2(difference, norm="ortho").abs().mean()


def data_residual(
    video: Float[Tensor, "b c t h w"], measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
) -> Float[Tensor, ""]:
    """||A x - y|| / ||y||, mean over samples: how far a video is from explaining its measurement.

    It needs no truth, and is no measure of quality: A^+ y has none, whatever it looks like.
    """
    difference = (VideoSCI(mask).A(video) - measurement).flatten(1)
    return ((difference.square().sum(1) + EPSILON).sqrt() / measurement.flatten(1).norm(dim=1)).mean()


LOSSES: dict[str, Loss] = {
    "rmse": rmse, "mse": mse, "sample-rmse": sample_rmse, "l1": l1, "charbonnier": charbonnier,
    "l1-frequency": l1_frequency,
}  # fmt: skip


def feature_distance(student: Float[Tensor, "b ..."], teacher: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """||f_s / |f_s| - f_t / |f_t| ||^2 of whole features, mean over samples [2DQuant eq. 10]."""
    a, b = (unit(features.flatten(1)) for features in (student, teacher))
    return (a - b).square().sum(1).mean()


def attention_distance(student: Float[Tensor, "b c t h w"], teacher: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """||a_s / |a_s| - a_t / |a_t| ||^2 with a = mean_c f^2, mean over samples [PAMS, structured knowledge transfer].

    Differs: PAMS takes the mean over positions, here it is their sum, so that the weight does not depend on the crop:
    its weight of 1000 on n positions is 1000 / n here. Its positions are pixels; here they are those of all frames.
    """
    return feature_distance(student.square().mean(1), teacher.square().mean(1))


def similarity_distance(student: Float[Tensor, "b n i d p"], teacher: Float[Tensor, "b n i d p"]) -> Float[Tensor, ""]:
    """||G_s - G_t|| with G = q q^T / ||q q^T|| over the i tokens of each head [Q-ViT, DGD].

    Frobenius norms; q (b, heads, tokens, channels, pixels) is a query, or a key.

    Differs: the paper sums over layers and heads; here it is the mean over samples, heads and pixels (and, in
    `Distillation`, over layers), so that the weight does not depend on the depth. A constant factor.
    """
    a, b = (torch.einsum("bnidp,bnjdp->bnijp", x, x).movedim(4, 2).flatten(3) for x in (student, teacher))
    return (unit(a) - unit(b)).norm(dim=3).mean()


def unit(x: Tensor) -> Tensor:
    """Each row (the last axis) divided by its norm."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


class Distillation:
    """Adds `output * rmse(student, teacher)` and, where their weights are not 0, distances inside the networks.

    | weight       | distance              | of                                                          |
    |--------------|-----------------------|-------------------------------------------------------------|
    | `features`   | `feature_distance`    | outputs of `blocks`, mean over them                         |
    | `attention`  | `attention_distance`  | the same                                                    |
    | `similarity` | `similarity_distance` | query and key of each attention, mean over all of them      |

    Query and key are the factors of the products named `scores`; the student's are taken before their grids.

    Args:
        student, teacher: networks with the same names; the teacher is not trained.
        blocks: names of the modules whose outputs are compared.
        output, features, similarity, attention: weights of the terms.

    Raises:
        ValueError: features or attention without blocks; similarity without a product named `scores`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        blocks: list[str],
        output: float,
        features: float = 0.0,
        similarity: float = 0.0,
        attention: float = 0.0,
    ):
        products = [name for name, _ in teacher.named_modules() if name.rpartition(".")[2] == "scores"]
        if max(features, attention) > 0 and not blocks:
            raise ValueError("features are to be distilled but no blocks are named; wanted one or more; name blocks")
        if similarity > 0 and not products:
            raise ValueError(
                f"similarities are to be distilled but {type(teacher).__name__} has no product named scores; wanted a "
                "network with attention; set distill_similarity to 0"
            )
        self.output = output
        self.teacher = teacher.eval().requires_grad_(False)
        outputs, operands = Pairs(), Pairs()
        terms = (features, feature_distance, outputs), (attention, attention_distance, outputs)
        self.terms = [term for term in (*terms, (similarity, similarity_distance, operands)) if term[0] > 0]
        self.handles = []
        for network, kept, seen in (
            (student, outputs.student, operands.student),
            (teacher, outputs.teacher, operands.teacher),
        ):
            if max(features, attention) > 0:
                hooks = [network.get_submodule(name).register_forward_hook(keep_output(kept)) for name in blocks]
                self.handles += hooks
            if similarity > 0:
                hooks = [network.get_submodule(name).register_forward_pre_hook(keep_factors(seen)) for name in products]
                self.handles += hooks

    def clear(self) -> None:
        """Forget the tensors of the last step."""
        for _, _, pairs in self.terms:
            pairs.student.clear()
            pairs.teacher.clear()

    def term(self, video: Video, target: Video) -> Tensor:
        """The distillation terms for the last forward passes of student and teacher."""
        total = self.output * rmse(video, target)
        for weight, distance, pairs in self.terms:
            both = zip(pairs.student, pairs.teacher, strict=True)
            total = total + weight * torch.stack([distance(a.float(), b.float()) for a, b in both]).mean()
        return total

    def remove(self) -> None:
        """Take the hooks off the networks."""
        for handle in self.handles:
            handle.remove()


@dataclass
class Pairs:
    """The same tensors of both networks, in the order of their execution."""

    student: list[Tensor] = field(default_factory=list)
    teacher: list[Tensor] = field(default_factory=list)


def keep_output(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook that keeps the output of a block."""

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output)

    return keep


def keep_factors(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that keeps query and key (b, heads, tokens, channels, pixels) of a product of query and key transposed."""

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.extend((inputs[0], inputs[1].transpose(2, 3)))

    return keep
