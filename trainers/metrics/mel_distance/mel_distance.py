"""Distance of log-mel spectrograms."""

import datasets
import evaluate
import torchaudio

from trainers.metrics.media import stack_waveforms

FLOOR = 1e-5


class MelDistance(evaluate.Metric):
    """Mean absolute difference of the natural logarithms of mel magnitudes above 1e-5; less is better.

    80 bands, Hann windows of 1024 samples moved on by 256. `compute(predictions=, references=, sampling_rate=)`
    takes waveforms of one length. Returns `mel_distance`.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean absolute difference of log-mel spectrograms.",
            citation="",
            inputs_description="predictions, references: waveforms of one length; sampling_rate in Hz",
            features=datasets.Features(
                {name: datasets.List(datasets.Value("float32")) for name in ("predictions", "references")}
            ),
        )

    def _compute(self, predictions, references, sampling_rate):
        predictions, references = stack_waveforms("mel_distance", predictions, references)
        mel = torchaudio.transforms.MelSpectrogram(
            sampling_rate, n_fft=1024, hop_length=256, n_mels=80, power=1.0, norm="slaney", mel_scale="slaney"
        )
        found, true = (mel(waveforms).clamp_min(FLOOR).log() for waveforms in (predictions, references))
        return {"mel_distance": float((found - true).abs().mean())}
