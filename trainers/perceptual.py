"""Distances between pictures that care more for what is seen than the mean error does."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VGG16_Weights

PERCEPTUAL = ("lpips", "laplacian")


def vgg_weights() -> Path:
    """Where torch keeps the ImageNet weights of VGG-16 that LPIPS needs, once they have been downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_Weights.IMAGENET1K_V1.url).name


def perceptual_distance(name: str) -> nn.Module:
    """A module that takes two batches of pictures `(frames, 3, height, width)` in [-1, 1] and returns a scalar.

    Raises:
        ValueError: `lpips` is asked for, but its weights are not on this machine.
    """
    if name == "laplacian":
        return LaplacianPyramidDistance()
    if not vgg_weights().is_file():
        raise ValueError(
            f"perceptual=lpips needs {vgg_weights()}, from {VGG16_Weights.IMAGENET1K_V1.url}; perceptual=laplacian "
            f"needs nothing"
        )
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # the only part of an optional package

    return LearnedDistance(_NoTrainLpips(net="vgg").requires_grad_(False))


class LearnedDistance(nn.Module):
    """LPIPS (Zhang et al. 2018, arXiv:1801.03924): differences of VGG-16 features, weighted as people judged them."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return self.network(pictures, others).mean()


class LaplacianPyramidDistance(nn.Module):
    """Absolute differences in every octave of detail, the offline substitute for LPIPS (Lap1: Bojanowski et al. 2018,
    arXiv:1707.05776).

    A pyramid splits pictures into edges at each scale and a small rest. Every octave counts the same in sum, so that
    fine edges, which the mean error hardly notices, weigh as much as brightness. It knows nothing of what the
    pictures show, unlike LPIPS.
    """

    num_levels = 4

    def forward(self, pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        rest = (pictures - others).float()  # the pyramid is linear: that of the difference is the difference
        total = rest.new_zeros(())
        for _ in range(self.num_levels):
            if min(rest.shape[2:]) < 2:
                break
            smaller = F.avg_pool2d(rest, 2)
            detail = rest - F.interpolate(smaller, size=rest.shape[2:], mode="bilinear", align_corners=False)
            total = total + detail.abs().mean()
            rest = smaller
        return total + rest.abs().mean()
