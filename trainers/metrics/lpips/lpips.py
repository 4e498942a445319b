"""Learned perceptual distance of pictures, by torchmetrics, where the weights of AlexNet or VGG are at hand."""

from pathlib import Path

import datasets
import evaluate
import torch
import torchvision
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from trainers.metrics.media import stack_pictures

WEIGHTS = {
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
BATCH_SIZE = 16


class LPIPS(evaluate.Metric):
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv:1801.03924); less is better.

    `compute(predictions=, references=, net_type="alex")` takes 8-bit RGB pictures of one size, PIL images or arrays
    `(height, width, 3)`; `net_type` is `alex`, `vgg` or `squeeze`. Returns `lpips`, the mean over pictures.

    Raises:
        FileNotFoundError: the network's weights are not in torch's cache; nothing is downloaded.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Learned perceptual image patch similarity, mean over pictures.",
            citation="Zhang et al. 2018, arXiv:1801.03924",
            inputs_description="predictions, references: pictures of one size, uint8",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    @torch.inference_mode()
    def _compute(self, predictions, references, net_type="alex"):
        predictions, references = stack_pictures("lpips", predictions, references)
        if net_type not in WEIGHTS:
            raise ValueError(f"lpips: net_type={net_type!r} must be one of {', '.join(WEIGHTS)}")
        url = WEIGHTS[net_type].url
        file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not file.exists():
            raise FileNotFoundError(f"{file}: no weights for LPIPS; put there what {url} holds")
        metric = LearnedPerceptualImagePatchSimilarity(net_type)
        for batch in zip(predictions.split(BATCH_SIZE), references.split(BATCH_SIZE), strict=True):
            metric.update(*(pictures / 127.5 - 1 for pictures in batch))
        return {"lpips": float(metric.compute())}
