"""Structural similarity of pictures, by torchmetrics."""

import datasets
import evaluate
from torchmetrics.functional.image import structural_similarity_index_measure

from trainers.metrics.media import stack_pictures

KERNEL_SIZE = 11


class SSIM(evaluate.Metric):
    """Structural similarity (Wang et al. 2004), at most 1, the mean over pictures; more is better.

    The usual Gaussian window of 11 pixels. `compute(predictions=, references=)` takes 8-bit RGB pictures of one
    size, PIL images or arrays `(height, width, 3)`. Returns `ssim`.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Structural similarity, mean over pictures.",
            citation="Wang et al. 2004, Image quality assessment: from error visibility to structural similarity",
            inputs_description="predictions, references: pictures of one size, uint8, of 11 pixels or more",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references):
        predictions, references = stack_pictures("ssim", predictions, references)
        if min(predictions.shape[-2:]) < KERNEL_SIZE:
            raise ValueError(f"ssim: pictures must have {KERNEL_SIZE} pixels or more along each side")
        value = structural_similarity_index_measure(
            predictions.double(), references.double(), data_range=255.0, kernel_size=KERNEL_SIZE
        )
        return {"ssim": float(value)}
