"""Fréchet distance between features of reconstructed and of real pictures, by torchmetrics.

FID (Heusel et al. 2017, arXiv:1706.08500) takes its features from Inception v3, whose weights must be downloaded.
Where they are not at hand a stated substitute stands in: convolutions with fixed random weights. Random networks
rank pictures by quality much as trained ones do (Naeem et al. 2020, arXiv:2002.09797), but the figures are on
another scale: compare only figures of the same `feature_network`.
"""

import datasets
import evaluate
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from trainers.metrics.media import stack_pictures

BATCH_SIZE = 64


class RandomConvolutions(nn.Module):
    """Four strided convolutions with weights drawn from seed 0; uint8 `(n, 3, height, width)` to `(n, 64)`."""

    name = "random convolutions, seed 0, 64 features"
    num_features = 64

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        widths = [3, 32, 64, 64, 64]
        self.layers = nn.ModuleList()
        for before, width in zip(widths, widths[1:], strict=False):
            layer = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            weight = torch.randn(layer.weight.shape, generator=generator) * (2 / (9 * before)) ** 0.5
            layer.weight = nn.Parameter(weight, requires_grad=False)
            self.layers.append(layer)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        hidden = pictures.float() / 127.5 - 1
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return hidden.mean((2, 3))


def network_of(feature_network):
    """What `FrechetInceptionDistance` takes, and its name; see `RFID`.

    Raises:
        ValueError: a path is not that of a TorchScript file.
    """
    if feature_network is None:
        return RandomConvolutions(), RandomConvolutions.name
    if isinstance(feature_network, str):
        try:
            return torch.jit.load(feature_network, map_location="cpu").eval(), feature_network
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"feature_network={feature_network!r}: no TorchScript file can be read there") from error
    if isinstance(feature_network, int):
        return feature_network, f"Inception v3, layer of {feature_network} features"
    return feature_network.eval(), getattr(feature_network, "name", type(feature_network).__name__)


class RFID(evaluate.Metric):
    """Fréchet distance of features between two sets of pictures; less is better.

    `compute(predictions=, references=, feature_network=None)` takes 8-bit RGB pictures of one size, PIL images or
    arrays `(height, width, 3)`, two or more. `feature_network` is None for `RandomConvolutions`, a module or the
    path of a TorchScript file that maps uint8 `(n, 3, height, width)` to `(n, features)`, or 64, 192, 768 or 2048
    for that layer of Inception v3 (needs torch-fidelity and its weights). Returns `rfid` and what `feature_network`
    was. With fewer pictures than features it is biased upwards: compare equal numbers.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Fréchet distance between features of reconstructed and of real pictures.",
            citation="Heusel et al. 2017, arXiv:1706.08500",
            inputs_description="predictions, references: pictures of one size, uint8",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    @torch.inference_mode()
    def _compute(self, predictions, references, feature_network=None):
        predictions, references = stack_pictures("rfid", predictions, references)
        if len(predictions) < 2:
            raise ValueError("rfid: needs two pictures or more")
        network, name = network_of(feature_network)
        metric = FrechetInceptionDistance(network, input_img_size=tuple(references.shape[1:]))
        for pictures, real in ((predictions, False), (references, True)):
            for batch in pictures.split(BATCH_SIZE):
                metric.update(batch, real=real)
        return {"rfid": float(metric.compute()), "feature_network": name}
