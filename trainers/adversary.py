"""The patch discriminator that VQGAN is trained against, with its own optimizer."""

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

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


class Adversary:
    """A discriminator in training: it judges reconstructions, learns from the same batch, and is saved with it.

    Hinge loss and adaptive weight are those of VQGAN (Esser et al. 2021, arXiv:2012.09841, section 3.1).
    """

    def __init__(self, discriminator: PatchDiscriminator, learning_rate: float, accelerator: Accelerator):
        self.accelerator = accelerator
        self.discriminator = discriminator.to(accelerator.device)
        for parameter in self.discriminator.parameters():  # every process starts with the main one's
            parameter.data = broadcast(parameter.data)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), learning_rate, betas=(0.5, 0.9))

    def judge(self, reconstruction: torch.Tensor) -> torch.Tensor:
        """The generator's loss: small where reconstructions `(frames, 3, height, width)` pass for real."""
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
