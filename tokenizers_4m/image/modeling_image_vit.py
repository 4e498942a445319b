"""Image tokenizer made of two vision transformers, the one of 4M (Mizrahi et al. 2023, arXiv:2312.06647).

ViT-VQGAN (Yu et al. 2022, arXiv:2110.04627) without its discriminator: patches are embedded, seen by a transformer and
quantized; another transformer makes patches of the codes. Names of layers are 4M's, so that
`scripts/convert_checkpoint.py` can read its `VQVAE` weights.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_image_vit import ImageViTConfig
from .modeling_frames import FrameAutoencoder, build_quantizer


class Attention(nn.Module):
    """Self-attention with heads of size 64; `(batch, tokens, hidden_size)` in and out."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.num_heads = hidden_size // 64
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # (batch, tokens, 3 * heads * 64) to three times (batch, heads, tokens, 64)
        qkv = self.qkv(hidden_states).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, hidden_size: int, activation: nn.Module):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.activation = activation
        self.fc2 = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class Block(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.attn = Attention(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.mlp = Mlp(hidden_size, nn.GELU())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states))
        return hidden_states + self.mlp(self.norm2(hidden_states))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution and an MLP over channels (Liu et al. 2022, arXiv:2201.03545)."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm(self.dwconv(pixels).permute(0, 2, 3, 1))
        hidden_states = self.gamma * self.pwconv2(F.gelu(self.pwconv1(hidden_states)))
        return pixels + hidden_states.permute(0, 3, 1, 2)


class Transformer(nn.Module):
    """Positions and blocks; `(frames, hidden_size, rows, columns)` in and out."""

    def __init__(self, hidden_size: int, num_layers: int, side: int, post_mlp: bool):
        super().__init__()
        self.register_buffer("pos_emb", torch.empty(1, hidden_size, side, side))
        self.blocks = nn.Sequential(*[Block(hidden_size) for _ in range(num_layers)])
        if post_mlp:
            self.norm_mlp = nn.LayerNorm(hidden_size, eps=1e-6)
            self.post_mlp = Mlp(hidden_size, nn.Tanh())

    def transform(self, hidden_states: torch.Tensor) -> torch.Tensor:
        grid = hidden_states.shape[2:]
        hidden_states = self.blocks((hidden_states + self.pos_emb).flatten(2).transpose(1, 2))
        if hasattr(self, "post_mlp"):
            hidden_states = hidden_states + self.post_mlp(self.norm_mlp(hidden_states))
        return hidden_states.transpose(1, 2).unflatten(2, grid)


class Encoder(Transformer):
    """Patches `(frames, 3 * patch_size ** 2, rows, columns)` to latents `(frames, hidden_size, rows, columns)`."""

    def __init__(self, config: ImageViTConfig):
        side = config.image_size // config.patch_size
        super().__init__(config.hidden_size, config.num_encoder_layers, side, config.post_mlp)
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.transform(F.conv2d(patches, self.proj.weight.flatten(1)[..., None, None], self.proj.bias))


class Decoder(Transformer):
    """Latents `(frames, hidden_size, rows, columns)` to patches."""

    def __init__(self, config: ImageViTConfig):
        side = config.image_size // config.patch_size
        super().__init__(config.hidden_size, config.num_decoder_layers, side, config.post_mlp)
        self.patch_size = config.patch_size
        self.out_proj = nn.Linear(config.hidden_size, 3 * config.patch_size**2)
        if config.out_conv:
            self.out_conv = nn.Sequential(ConvNeXtBlock(3), ConvNeXtBlock(3))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        patches = self.out_proj(self.transform(latents).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if hasattr(self, "out_conv"):
            pixels = self.out_conv(F.pixel_shuffle(patches, self.patch_size))
            patches = F.pixel_unshuffle(pixels, self.patch_size)
        return patches


class ImageViT(FrameAutoencoder, PreTrainedModel):
    """Turns clips of `num_frames` pictures into `num_frames * (image_size / patch_size) ** 2` token ids."""

    config: ImageViTConfig
    config_class = ImageViTConfig
    base_model_prefix = ""

    def __init__(self, config: ImageViTConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quantizer = build_quantizer(config, config.hidden_size)
        self.decoder = Decoder(config)
        self.post_init()

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.out_proj.weight

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ConvNeXtBlock):
            init.constant_(module.gamma, 1e-6)
        elif isinstance(module, Transformer):
            init.copy_(module.pos_emb, sinusoidal_positions(*module.pos_emb.shape[1:3]))
        else:
            super()._init_weights(module)


def sinusoidal_positions(hidden_size: int, side: int) -> torch.Tensor:
    """Sines and cosines of row and column, `(1, hidden_size, side, side)` (MoCo v3, Chen et al. 2021)."""
    frequencies = 10000.0 ** -(torch.arange(hidden_size // 4) / (hidden_size // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).t()
    first = waves[:, :, None].expand(-1, side, side)
    return torch.cat([first, first.transpose(1, 2)])[None]
