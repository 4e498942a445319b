"""Peak signal-to-noise ratio of pictures, by torchmetrics."""

import datasets
import evaluate
from torchmetrics.functional.image import peak_signal_noise_ratio

from trainers.metrics.media import stack_pictures


class PSNR(evaluate.Metric):
    """Peak signal-to-noise ratio, dB: the mean over pictures of `10 log10(255² / MSE)`; more is better.

    `compute(predictions=, references=)` takes 8-bit RGB pictures of one size, PIL images or arrays
    `(height, width, 3)`. Returns `psnr`, infinite if a picture equals its reference.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean over pictures of the peak signal-to-noise ratio, dB.",
            citation="",
            inputs_description="predictions, references: pictures of one size, uint8",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references):
        predictions, references = stack_pictures("psnr", predictions, references)
        value = peak_signal_noise_ratio(predictions.float(), references.float(), data_range=255.0, dim=(1, 2, 3))
        return {"psnr": float(value)}
