"""Scale-invariant signal-to-distortion ratio of waveforms, by torchmetrics."""

import datasets
import evaluate
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from trainers.metrics.media import stack_waveforms


class SISDR(evaluate.Metric):
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, arXiv:1811.02508), dB; more is better.

    It compares samples, so a decoder that makes up phases scores low however good it sounds.
    `compute(predictions=, references=)` takes waveforms of one length. Returns `si_sdr`, the mean over clips.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Scale-invariant signal-to-distortion ratio, dB, mean over clips.",
            citation="Le Roux et al. 2019, arXiv:1811.02508",
            inputs_description="predictions, references: waveforms of one length",
            features=datasets.Features(
                {name: datasets.List(datasets.Value("float32")) for name in ("predictions", "references")}
            ),
        )

    def _compute(self, predictions, references):
        predictions, references = stack_waveforms("si_sdr", predictions, references)
        return {"si_sdr": float(scale_invariant_signal_distortion_ratio(predictions, references).mean())}
