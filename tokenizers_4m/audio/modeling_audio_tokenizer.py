"""Audio tokenizer: a vector-quantized autoencoder of log-mel spectrograms.

The waveform becomes a log-mel spectrogram, a convolutional encoder shortens it in time, a (residual)
vector quantizer makes ids of it, and a decoder restores the spectrogram, as in SpecVQGAN (Iashin and Rahtu
2021, arXiv:2110.08791) but with the whole spectrum of a moment in one token. The waveform is recovered
from the magnitudes by Griffin-Lim (Griffin and Lim 1984), started from zero phase so that it is deterministic.
"""

from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from ..autoencoder import AutoencoderOutput, QuantizedAutoencoder
from ..quantizer import VectorQuantizer
from .configuration_audio_tokenizer import AudioTokenizerConfig


class ResidualBlock(nn.Module):
    """Two convolutions over time beside the identity; `(batch, channels, time)` in and out."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv1d(channels, channels, 1),
        )
        self.layers[-1].starts_at_zero = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.layers(hidden_states)


class AudioTokenizer(QuantizedAutoencoder, PreTrainedModel):
    """Turns waveforms of `num_samples` samples into `num_steps * num_quantizers` token ids."""

    config: AudioTokenizerConfig
    config_class = AudioTokenizerConfig
    base_model_prefix = ""
    main_input_name = "waveform"

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__(config)
        channels = config.hidden_size
        halvings = config.time_stride.bit_length() - 1

        def residual_blocks():
            return [ResidualBlock(channels) for _ in range(config.num_residual_blocks)]

        encoder = [nn.Conv1d(config.num_mels, channels, 3, padding=1), *residual_blocks()]
        decoder = [nn.Conv1d(channels, channels, 3, padding=1), *residual_blocks()]
        for _ in range(halvings):
            encoder += [nn.Conv1d(channels, channels, 4, stride=2, padding=1), *residual_blocks()]
            decoder += [nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1), *residual_blocks()]
        self.encoder = nn.Sequential(*encoder)
        self.quantizer = VectorQuantizer(
            channels,
            config.codebook_size,
            config.code_dim,
            num_quantizers=config.num_quantizers,
            warmup_steps=config.quantizer_warmup_steps,
        )
        self.decoder = nn.Sequential(*decoder, nn.Conv1d(channels, config.num_mels, 3, padding=1))
        self.post_init()

    @can_return_tuple
    def forward(self, waveform: torch.FloatTensor) -> AutoencoderOutput:
        """Reconstruct the spectrogram of `waveform` `(batch, num_samples)` and score the result."""
        log_mel = self.log_mel(waveform)
        quantized = self.quantizer(self._latents(log_mel))
        reconstruction = self._spectrogram(quantized.quantized)
        return self._score(reconstruction, log_mel, quantized)

    def encode(self, waveform: torch.FloatTensor) -> torch.LongTensor:
        """Waveform `(batch, num_samples)` in [-1, 1] to ids `(batch, num_tokens)`, time major."""
        return self.quantizer(self._latents(self.log_mel(waveform))).token_ids.flatten(1)

    def decode(self, token_ids: torch.LongTensor) -> torch.FloatTensor:
        """Ids `(batch, num_tokens)` to a waveform `(batch, num_samples)` float32.

        Raises:
            ValueError: if the shape is wrong or an id is outside the vocabulary.
        """
        return self.vocode(self.decode_log_mel(token_ids))

    def decode_log_mel(self, token_ids: torch.LongTensor) -> torch.FloatTensor:
        """Ids `(batch, num_tokens)` to the normalised log-mel spectrogram `(batch, num_mels, frames)`."""
        self.check_token_ids(token_ids)
        ids = token_ids.unflatten(1, (self.config.num_steps, self.config.num_quantizers))
        return self._spectrogram(self.quantizer.lookup(ids))

    def log_mel(self, waveform: torch.FloatTensor) -> torch.FloatTensor:
        """Normalised log-mel spectrogram `(batch, num_mels, num_steps * time_stride)`, float32.

        Raises:
            ValueError: if `waveform` is not `(batch, num_samples)`.
        """
        if waveform.ndim != 2 or waveform.shape[1] != self.config.num_samples:
            raise ValueError(
                f"AudioTokenizer: waveform must have shape (batch, {self.config.num_samples}) "
                f"({self.config.clip_seconds} s at {self.config.sampling_rate} Hz), got {tuple(waveform.shape)}"
            )
        frames = self.config.num_steps * self.config.time_stride
        missing = frames * self.config.hop_length - waveform.shape[1]
        waveform = nn.functional.pad(waveform.float(), (0, missing))
        mel = self._transform("mel", waveform.device)(waveform)[..., :frames]
        # Added rather than a lower limit, so that it can be taken away again and silence stays silent.
        return ((mel + self.config.log_floor).log() - self.config.log_mel_mean) / self.config.log_mel_std

    @torch.no_grad()
    def fit_normalisation(self, waveform: torch.FloatTensor) -> None:
        """Set `config.log_mel_mean` and `log_mel_std` so that these clips `(batch, num_samples)` come out standard."""
        self.config.log_mel_mean, self.config.log_mel_std = 0.0, 1.0
        log_mel = self.log_mel(waveform)
        self.config.log_mel_mean, self.config.log_mel_std = log_mel.mean().item(), max(log_mel.std().item(), 1e-3)

    @torch.no_grad()
    def vocode(self, log_mel: torch.FloatTensor) -> torch.FloatTensor:
        """Waveform `(batch, num_samples)` with the given normalised log-mel spectrogram, by Griffin-Lim."""
        mel = (log_mel.float() * self.config.log_mel_std + self.config.log_mel_mean).exp()
        mel = (mel - self.config.log_floor).relu()
        # The spectrum of least norm with these mel bands, which `InverseMelScale` would solve for anew every time.
        magnitude = (self._transform("inverse_mel", mel.device) @ mel).relu()
        # Griffin-Lim with centred windows returns hop * (frames - 1) samples: give it one frame more.
        magnitude = nn.functional.pad(magnitude, (0, 1), mode="replicate")
        waveform = self._transform("griffin_lim", mel.device)(magnitude)
        return waveform[:, : self.config.num_samples].clamp(-1, 1)

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

    def _latents(self, log_mel: torch.Tensor) -> torch.Tensor:
        return self.encoder(log_mel.to(self.dtype)).transpose(1, 2)

    def _spectrogram(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents.to(self.dtype).transpose(1, 2))

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
        elif isinstance(item, dict):
            item, sampling_rate = item["array"], item["sampling_rate"]
        elif isinstance(item, tuple):
            item, sampling_rate = item
        waveform = torch.as_tensor(np.asarray(item), dtype=torch.float32)
        if waveform.ndim == 2:
            waveform = waveform.mean(0)
        if waveform.ndim != 1 or not torch.isfinite(waveform).all():
            raise ValueError(f"{name}: needs finite samples of shape (samples,) or (channels, samples)")
        if sampling_rate != self.config.sampling_rate:
            waveform = torchaudio.functional.resample(waveform, int(sampling_rate), self.config.sampling_rate)
        waveform = waveform[: self.config.num_samples]
        if self.config.loudness is not None and (sound := waveform[waveform != 0]).numel():
            waveform = waveform * (self.config.loudness / sound.square().mean().sqrt())
        return nn.functional.pad(waveform, (0, self.config.num_samples - len(waveform)))

    def _transform(self, name: str, device: torch.device) -> nn.Module | torch.Tensor:
        # The transforms hold windows and filter banks but nothing learned: they are made on first use and kept
        # outside of the module tree, so that they are neither saved, cast to half precision nor hashed.
        transforms = self.__dict__.setdefault("_transforms", {})
        if (name, device) not in transforms:
            config = self.config
            stft = {"n_fft": config.fft_size, "hop_length": config.hop_length, "power": 1.0}
            mel = {"n_mels": config.num_mels, "sample_rate": config.sampling_rate}
            if name == "mel":
                transform = torchaudio.transforms.MelSpectrogram(**stft, **mel, norm="slaney", mel_scale="htk")
            elif name == "inverse_mel":
                transform = torch.linalg.pinv(self._transform("mel", device).mel_scale.fb.t())
            else:
                transform = torchaudio.transforms.GriffinLim(
                    **stft, n_iter=config.griffin_lim_iterations, rand_init=False
                )
            transforms[name, device] = transform.to(device)
        return transforms[name, device]
