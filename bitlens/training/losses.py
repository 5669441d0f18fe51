"""The losses: RMSE (Q-SCI's code), MSE (its paper), and distillation from the float network.

Each takes videos (b, c, t, h, w) and returns one number.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

Video = Float[Tensor, "b c t h w"]
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


LOSSES: dict[str, Loss] = {"rmse": rmse, "mse": mse, "sample-rmse": sample_rmse}


class Distillation:
    """Adds `output * rmse(student, teacher)` and `features * L_F` to the loss.

    L_F is the mean over blocks of ||f_s / |f_s| - f_t / |f_t| ||^2 per sample, with f the output of a block
    (normalized features, as 2DQuant's eq. 10 has them).

    Args:
        student, teacher: networks with the same block names; the teacher is not trained.
        blocks: names of the modules whose outputs are compared.
        output, features: weights of the two terms.

    Raises:
        ValueError: features without blocks.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, blocks: list[str], output: float, features: float):
        if features > 0 and not blocks:
            raise ValueError("features are to be distilled but no blocks are named; wanted one or more; name blocks")
        self.output, self.features = output, features
        self.teacher = teacher.eval().requires_grad_(False)
        self.kept: dict[str, list[Tensor]] = {"student": [], "teacher": []}
        self.handles = []
        if features > 0:
            for who, network in (("student", student), ("teacher", teacher)):
                for block in blocks:
                    hook = self.keeper(who)
                    self.handles.append(network.get_submodule(block).register_forward_hook(hook))

    def keeper(self, who: str):
        """A hook that keeps the output of a block."""

        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self.kept[who].append(output)

        return keep

    def clear(self) -> None:
        """Forget the features of the last step."""
        for features in self.kept.values():
            features.clear()

    def term(self, video: Video, target: Video) -> Tensor:
        """The two distillation terms for the last forward passes of student and teacher."""
        total = self.output * rmse(video, target)
        pairs = list(zip(self.kept["student"], self.kept["teacher"], strict=True))
        for student, teacher in pairs:
            a, b = student.float().flatten(1), teacher.float().flatten(1)
            a = a / a.norm(dim=1, keepdim=True).clamp_min(1e-6)
            b = b / b.norm(dim=1, keepdim=True).clamp_min(1e-6)
            total = total + self.features * (a - b).square().sum(1).mean() / len(pairs)
        return total

    def remove(self) -> None:
        """Take the hooks off the networks."""
        for handle in self.handles:
            handle.remove()
