"""A learned way from the mel spectrogram to the waveform, and the loss that trains it.

As in Vocos (Siuzdak 2023, arXiv:2306.00814) a stack of ConvNeXt blocks over time, all at the rate of the spectrogram's
frames, predicts magnitude and phase of a short-time Fourier transform, whose inverse is the waveform: no layer runs at
the rate of the samples, which makes it fast. Unlike there, the network starts from the magnitudes that the mel
bands already tell and learns only what to add to them, so that the phase is what there is to learn.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .convnext import ConvNeXtBlock

# exp(_MAX_LOG_MAGNITUDE) is more than a full-scale tone has; without a bound one bad step gives infinite samples.
_MAX_LOG_MAGNITUDE = 8.0
# Magnitudes below are silence: without a floor, the logarithm makes most of the loss of what nobody hears.
_MAGNITUDE_FLOOR = 1e-2


class ISTFTDecoder(nn.Module):
    """Log-mel spectrogram to waveform.

    Args:
        num_mels: bands of the spectrogram.
        fft_size, hop_length: of the inverse transform, samples; one frame of the spectrogram makes one hop.
        hidden_size, num_layers: channels and number of the ConvNeXt blocks.
    """

    def __init__(self, num_mels: int, fft_size: int, hop_length: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.fft_size, self.hop_length = fft_size, hop_length
        self.embed = nn.Conv1d(num_mels, hidden_size, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(hidden_size) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(hidden_size)
        self.magnitude = nn.Linear(hidden_size, fft_size // 2 + 1)
        self.magnitude.starts_at_zero = True
        self.phase = nn.Linear(hidden_size, fft_size // 2 + 1)

    def forward(self, log_mel: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        """The waveform `(batch, frames * hop_length)`, float32.

        Args:
            log_mel: normalised, `(batch, num_mels, frames)`.
            magnitude: a first guess of the magnitudes, `(batch, fft_size // 2 + 1, frames)`.
        """
        hidden_states = self.norm(self.blocks(self.embed(log_mel).transpose(1, 2)))
        change, phase = self.magnitude(hidden_states), self.phase(hidden_states)
        with torch.autocast(log_mel.device.type, enabled=False):
            log_magnitude = magnitude.float().clamp_min(_MAGNITUDE_FLOOR).log() + change.float().transpose(1, 2)
            magnitude = log_magnitude.clamp_max(_MAX_LOG_MAGNITUDE).exp()
            spectrum = torch.polar(magnitude, phase.float().transpose(1, 2))
            # The inverse with centred windows returns hop * (frames - 1) samples: give it one frame more.
            spectrum = torch.cat([spectrum, spectrum[..., -1:]], dim=-1)
            window = torch.hann_window(self.fft_size, device=log_mel.device)
            return torch.istft(spectrum, self.fft_size, self.hop_length, window=window)


def multi_resolution_stft_loss(waveform: torch.Tensor, original: torch.Tensor, fft_sizes: tuple[int, ...]):
    """How far the magnitudes of two batches of waveforms `(batch, samples)` are apart, scalar float32.

    The mean over Fourier transforms of several sizes of spectral convergence plus the absolute difference of the
    logarithms (Parallel WaveGAN, Yamamoto et al. 2020, arXiv:1910.11480). Phases do not count: they cannot be heard,
    nor be told from the spectrogram.
    """
    losses = []
    for fft_size in fft_sizes:
        ours, theirs = (_magnitudes(samples, fft_size) for samples in (waveform, original))
        convergence = (ours - theirs).norm() / theirs.norm().clamp_min(1.0)
        losses.append(convergence + F.l1_loss(ours.log(), theirs.log()))
    return torch.stack(losses).mean()


def _magnitudes(waveform: torch.Tensor, fft_size: int) -> torch.Tensor:
    window = torch.hann_window(fft_size, device=waveform.device)
    # "constant", as segments may be shorter than the half of a window that reflection needs.
    spectrum = torch.stft(waveform, fft_size, fft_size // 4, window=window, pad_mode="constant", return_complex=True)
    # Of the squares, as the gradient of the absolute value of a complex zero is not a number.
    return (spectrum.real.square() + spectrum.imag.square()).clamp_min(_MAGNITUDE_FLOOR**2).sqrt()
