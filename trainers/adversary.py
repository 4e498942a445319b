"""Discriminators that tokenizers of pictures and of sound are trained against, with an optimizer of their own."""

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

FILE = "discriminator.pt"


class PatchDiscriminator(nn.Sequential):
    """Scores overlapping patches of pictures `(frames, 3, height, width)`: high if real (Isola et al. 2017).

    Groups of channels are normalised where the original normalises batches, whose statistics would depend on how
    many pictures a process has.

    Args:
        channels: after the first convolution; each of the following ones has twice as many, up to eight times.
        num_layers: convolutions that halve the resolution; with 3, a score sees 70 x 70 pixels.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3):
        layers = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, num_layers + 1):
            before, width = width, channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(min(8, channels), width), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)


class SpectrogramDiscriminator(nn.Module):
    """Scores moments and bands of waveforms `(batch, samples)` float32: high if real; `(batch, scores)`.

    One network for each of several Fourier transforms, which share no weights (UnivNet, Jang et al. 2021,
    arXiv:2106.07889), on real and imaginary parts (EnCodec, Défossez et al. 2022, arXiv:2210.13438), so that phases
    that do not fit each other count. Magnitudes are raised to the power of 0.3, else only the loudest would count.

    Args:
        fft_sizes: of the transforms, samples; their hop is a quarter.
        channels: of all convolutions.
        num_layers: convolutions that halve the number of bands; those after the second are dilated in time.
    """

    def __init__(self, fft_sizes: tuple[int, ...], channels: int = 64, num_layers: int = 3):
        super().__init__()
        self.fft_sizes = fft_sizes
        self.networks = nn.ModuleList(_convolutions(channels, num_layers) for _ in fft_sizes)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        scores = [
            network(_compressed_spectrum(waveform.float(), fft_size)).flatten(1)
            for network, fft_size in zip(self.networks, self.fft_sizes, strict=True)
        ]
        return torch.cat(scores, dim=1)  # about as many of each transform


def _convolutions(channels: int, num_layers: int) -> nn.Sequential:
    """`(batch, 2, frames, bands)` to `(batch, 1, frames, bands / 2**num_layers)`."""
    layers, width = [], 2
    for layer in range(num_layers):
        reach = 2 ** max(0, layer - 1)
        convolution = nn.Conv2d(width, channels, (3, 9), stride=(1, 2), dilation=(reach, 1), padding=(reach, 4))
        layers += [weight_norm(convolution), nn.LeakyReLU(0.2)]
        width = channels
    return nn.Sequential(*layers, weight_norm(nn.Conv2d(width, 1, 3, padding=1)))


def _compressed_spectrum(waveform: torch.Tensor, fft_size: int) -> torch.Tensor:
    """Real and imaginary part, `(batch, 2, frames, fft_size // 2 + 1)`, with magnitudes to the power of 0.3."""
    with torch.autocast(waveform.device.type, enabled=False):
        window = torch.hann_window(fft_size, device=waveform.device)
        # "constant", as waveforms may be shorter than the half of a window that reflection needs.
        transform = {"hop_length": fft_size // 4, "window": window, "pad_mode": "constant", "return_complex": True}
        parts = torch.view_as_real(torch.stft(waveform, fft_size, **transform)).permute(0, 3, 2, 1)
        # Below 1e-2, which is silence, the gradient would be steep without end.
        return parts * parts.square().sum(1, keepdim=True).clamp_min(1e-4) ** -0.35


class Adversary:
    """A discriminator in training: it judges reconstructions, learns from the same batch, and is saved with it.

    Hinge loss and adaptive weight are those of VQGAN (Esser et al. 2021, arXiv:2012.09841, section 3.1).
    """

    def __init__(self, discriminator: nn.Module, learning_rate: float, accelerator: Accelerator):
        self.accelerator = accelerator
        self.discriminator = discriminator.to(accelerator.device)
        for parameter in self.discriminator.parameters():  # every process starts with the main one's
            parameter.data = broadcast(parameter.data)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), learning_rate, betas=(0.5, 0.9))

    def judge(self, reconstruction: torch.Tensor) -> torch.Tensor:
        """The generator's loss: small where reconstructions pass for real."""
        self.discriminator.requires_grad_(False)
        loss = -self.discriminator(reconstruction).float().mean()
        self.discriminator.requires_grad_(True)
        return loss

    def learn(self, real: torch.Tensor, reconstruction: torch.Tensor, num_batches: int) -> torch.Tensor:
        """Add the gradients of one of the `num_batches` batches of a step; returns the hinge loss, detached."""
        real_scores, fake_scores = self.discriminator(real).float(), self.discriminator(reconstruction).float()
        loss = 0.5 * (F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean())
        (loss / num_batches).backward()
        return loss.detach()

    def step(self) -> None:
        """Average the gradients over the processes and make a step."""
        for parameter in self.discriminator.parameters():
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: str | Path) -> None:
        state = {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Go on from what `save` wrote; ValueError if there is nothing."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no {FILE}: it was trained without a discriminator, resume it without, too")
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: nn.Parameter
) -> torch.Tensor:
    """How much the second loss must weigh for its gradient at the last layer to be as large as the first one's."""
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
