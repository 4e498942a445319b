"""Sound files and arrays to waveforms of one length and rate, and back: the same for every audio tokenizer."""

from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import nn

from ..contract import TokenizerConfig4M


class AudioConfig(TokenizerConfig4M):
    """Subclasses have the fields `sampling_rate`, of the waveforms in Hz, and `clip_seconds`."""

    modality = "audio"

    @property
    def num_samples(self) -> int:
        """Samples per clip."""
        return round(self.clip_seconds * self.sampling_rate)


class WaveformMedia:
    """Mixed into audio tokenizers, whose config is an `AudioConfig`: what goes into them, and comes out."""

    def preprocess(self, media: list) -> torch.FloatTensor:
        """Waveforms to `(batch, num_samples)` float32: mono, resampled, cut or padded with silence at the end.

        Each item is a 1-D array or tensor at the tokenizer's own sampling rate, a pair
        `(array, sampling_rate)`, a dictionary with `array` and `sampling_rate`, or a sound file; arrays of
        two dimensions are `(channels, samples)`.

        Raises:
            ValueError: if a file is no sound file, or samples are not finite numbers.
        """
        return torch.stack([self._to_waveform(item) for item in media])

    def postprocess(self, waveform: torch.FloatTensor) -> list[np.ndarray]:
        """One float32 array `(num_samples,)` per clip, at `config.sampling_rate`."""
        return list(waveform.float().cpu().numpy())

    def check_waveform(self, waveform: torch.Tensor) -> None:
        """Raise ValueError unless `waveform` is `(batch, num_samples)`."""
        if waveform.ndim != 2 or waveform.shape[1] != self.config.num_samples:
            raise ValueError(
                f"{type(self).__name__}: waveform must have shape (batch, {self.config.num_samples}) "
                f"({self.config.clip_seconds} s at {self.config.sampling_rate} Hz), got {tuple(waveform.shape)}"
            )

    def _to_waveform(self, item) -> torch.Tensor:
        sampling_rate = self.config.sampling_rate
        name = "waveform"
        if isinstance(item, (str, Path)):
            name = str(item)
            try:
                samples, sampling_rate = soundfile.read(item, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, OSError) as error:
                raise ValueError(f"{item}: not a readable sound file ({error})") from error
            item = samples.T
        elif isinstance(item, dict) or hasattr(item, "get_all_samples"):  # the latter is what `datasets` decodes to
            item, sampling_rate = item["array"], item["sampling_rate"]
        elif isinstance(item, tuple):
            item, sampling_rate = item
        array = np.asarray(item)
        if array.dtype.kind == "i":  # whole numbers, as in files
            array = array / -float(np.iinfo(array.dtype).min)
        waveform = torch.as_tensor(array, dtype=torch.float32)
        if waveform.ndim == 2:
            waveform = waveform.mean(0)
        if waveform.ndim != 1 or not torch.isfinite(waveform).all():
            raise ValueError(f"{name}: needs finite samples of shape (samples,) or (channels, samples)")
        if sampling_rate != self.config.sampling_rate:
            waveform = torchaudio.functional.resample(waveform, int(sampling_rate), self.config.sampling_rate)
        waveform = waveform[: self.config.num_samples]
        return nn.functional.pad(waveform, (0, self.config.num_samples - len(waveform)))
