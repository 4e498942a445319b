"""Distance of magnitude spectra at several resolutions."""

import datasets
import evaluate
import torch

from trainers.metrics.media import stack_waveforms

WINDOWS = (512, 1024, 2048)
FLOOR = 1e-5


class STFTDistance(evaluate.Metric):
    """Multi-resolution STFT distance (Yamamoto et al. 2020, arXiv:1910.11480); less is better.

    For Hann windows of 512, 1024 and 2048 samples, moved on by a quarter each: the spectral convergence
    `|P - R| / |R|` (Frobenius norms) and the mean difference of the natural logarithms of magnitudes above 1e-5.
    `compute(predictions=, references=)` takes waveforms of one length, 2048 samples or more. Returns
    `stft_distance`, which is the sum of the `spectral_convergence` and the `log_magnitude` that it returns too, all
    of them means over resolutions and clips.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Spectral convergence and log magnitude distance at several resolutions.",
            citation="Yamamoto et al. 2020, arXiv:1910.11480",
            inputs_description="predictions, references: waveforms of one length",
            features=datasets.Features(
                {name: datasets.List(datasets.Value("float32")) for name in ("predictions", "references")}
            ),
        )

    def _compute(self, predictions, references):
        predictions, references = stack_waveforms("stft_distance", predictions, references)
        if predictions.shape[1] < max(WINDOWS):
            raise ValueError(f"stft_distance: waveforms must have {max(WINDOWS)} samples or more")
        convergence, log_magnitude = [], []
        for window in WINDOWS:
            found, true = (_magnitudes(waveforms, window) for waveforms in (predictions, references))
            norms = torch.linalg.matrix_norm(true).clamp_min(1.0)  # as in training: silence is not infinitely wrong
            convergence.append((torch.linalg.matrix_norm(found - true) / norms).mean())
            log_magnitude.append((found.clamp_min(FLOOR).log() - true.clamp_min(FLOOR).log()).abs().mean())
        parts = [float(torch.stack(values).mean()) for values in (convergence, log_magnitude)]
        return {"stft_distance": sum(parts), "spectral_convergence": parts[0], "log_magnitude": parts[1]}


def _magnitudes(waveforms: torch.Tensor, window: int) -> torch.Tensor:
    hann = torch.hann_window(window)
    return torch.stft(waveforms, window, window // 4, window=hann, return_complex=True).abs()
