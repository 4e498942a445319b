"""The block that all of the audio tokenizer's networks are made of: ConvNeXt over time (arXiv:2201.03545)."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer network per frame, beside the identity.

    `(batch, time, channels)` in and out. It starts as the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels)
        )
        self.layers[-1].starts_at_zero = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Seen as a picture one pixel wide the states are in the order that convolutions are fastest in, and
        # nothing is copied back and forth between the convolution's order and that of the other layers.
        picture = hidden_states.transpose(1, 2).unsqueeze(-1)
        weight, bias = self.depthwise.weight.unsqueeze(-1), self.depthwise.bias
        mixed = F.conv2d(picture, weight, bias, padding=(3, 0), groups=self.depthwise.groups)
        return hidden_states + self.layers(mixed.squeeze(-1).transpose(1, 2))
