"""Image tokenizer of the VQGAN family: convolutional encoder, quantizer, convolutional decoder.

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv:2012.09841), made of the
residual, sampling and attention blocks of diffusers. A clip of several frames is tokenized frame by frame.
"""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from transformers import PreTrainedModel

from .configuration_image_tokenizer import ImageTokenizerConfig
from .modeling_frames import FrameAutoencoder, build_quantizer


def residual_block(channels: int, config: ImageTokenizerConfig) -> ResnetBlock2D:
    block = ResnetBlock2D(in_channels=channels, temb_channels=None, groups=config.norm_num_groups, eps=1e-6)
    block.conv2.starts_at_zero = True
    return block


def middle_block(channels: int, config: ImageTokenizerConfig) -> list[nn.Module]:
    if not config.mid_block_add_attention:
        return []
    attention = Attention(
        channels,
        heads=1,
        dim_head=channels,
        norm_num_groups=config.norm_num_groups,
        eps=1e-6,
        bias=True,
        residual_connection=True,
    )
    attention.to_out[0].starts_at_zero = True
    return [residual_block(channels, config), attention, residual_block(channels, config)]


class Level(nn.Sequential):
    """Layers that follow each other; the blocks of diffusers want to be told that there is no time embedding."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self:
            hidden_states = layer(hidden_states, None) if isinstance(layer, ResnetBlock2D) else layer(hidden_states)
        return hidden_states


class ImageTokenizer(FrameAutoencoder, PreTrainedModel):
    """Turns clips of `num_frames` pictures into `num_frames * (image_size / stride) ** 2` token ids."""

    config: ImageTokenizerConfig
    config_class = ImageTokenizerConfig
    base_model_prefix = ""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__(config)
        widths = config.block_out_channels
        pixels = 3 * config.patch_size**2
        encoder = [nn.Conv2d(pixels, widths[0], 3, padding=1)]
        decoder = [nn.Conv2d(widths[0], pixels, 3, padding=1)]
        for level, width in enumerate(widths):
            if level:
                before = widths[level - 1]
                encoder.append(Downsample2D(before, use_conv=True, out_channels=width, padding=0, name="op"))
                decoder.append(Upsample2D(width, use_conv_transpose=True, out_channels=before))
            encoder += [residual_block(width, config) for _ in range(config.layers_per_block)]
            decoder += [residual_block(width, config) for _ in range(config.layers_per_block)]
        self.encoder = Level(*encoder, *middle_block(widths[-1], config))
        self.decoder = Level(*middle_block(widths[-1], config), *reversed(decoder))
        self.quantizer = build_quantizer(config, widths[-1])
        self.post_init()

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder[-1].weight
