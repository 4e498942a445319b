"""Image tokenizer of the VQGAN family: convolutional encoder, vector quantizer, convolutional decoder.

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv:2012.09841), made of the
residual, sampling and attention blocks of diffusers. A clip of several frames is tokenized frame by frame.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from ..autoencoder import AutoencoderOutput, QuantizedAutoencoder
from ..quantizer import VectorQuantizer
from .configuration_image_tokenizer import ImageTokenizerConfig


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


class ImageTokenizer(QuantizedAutoencoder, PreTrainedModel):
    """Turns clips of `num_frames` pictures into `num_frames * (image_size / stride) ** 2` token ids."""

    config: ImageTokenizerConfig
    config_class = ImageTokenizerConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

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
        self.quantizer = VectorQuantizer(
            widths[-1], config.codebook_size, config.code_dim, warmup_steps=config.quantizer_warmup_steps
        )
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.FloatTensor) -> AutoencoderOutput:
        """Reconstruct `pixel_values` `(batch, num_frames, 3, image_size, image_size)` and score the result."""
        pixel_values = pixel_values.to(self.dtype)
        quantized = self.quantizer(self._latents(pixel_values))
        reconstruction = self._pixels(quantized.quantized, len(pixel_values))
        return self._score(reconstruction, pixel_values, quantized)

    def encode(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """`(batch, num_frames, 3, image_size, image_size)` to ids `(batch, num_tokens)`; frames, rows, columns."""
        token_ids = self.quantizer(self._latents(pixel_values.to(self.dtype))).token_ids
        return token_ids.reshape(len(pixel_values), self.config.num_tokens)

    def decode(self, token_ids: torch.LongTensor) -> torch.FloatTensor:
        """Ids `(batch, num_tokens)` to `(batch, num_frames, 3, image_size, image_size)`.

        Raises:
            ValueError: if the shape is wrong or an id is outside the vocabulary.
        """
        self.check_token_ids(token_ids)
        latents = self.quantizer.lookup(token_ids.reshape(-1, self._side, self._side, 1))
        return self._pixels(latents, len(token_ids))

    def preprocess(self, media: list) -> torch.FloatTensor:
        """Normalise clips to `(batch, num_frames, 3, image_size, image_size)`.

        Each clip is a list of PIL images, an array `(num_frames, height, width, 3)` uint8, or one PIL image or
        file. A single picture of `num_frames` squares side by side (what `generate.py` writes) is read as the
        frames of a clip; any other single picture is repeated for every frame. Pictures of another size are
        resized on the short side and centre-cropped.

        Raises:
            ValueError: if a file is no picture or a clip has another number of frames.
        """
        clips = np.stack([np.stack([self._to_array(frame) for frame in self._frames(clip)]) for clip in media])
        pixels = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255
        return (pixels - self.config.image_mean) / self.config.image_std

    def postprocess(self, pixel_values: torch.FloatTensor) -> list[list[Image.Image]]:
        """Reverse `preprocess`: one list of `num_frames` RGB images per clip."""
        pixels = pixel_values.float() * self.config.image_std + self.config.image_mean
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
        return [[Image.fromarray(frame) for frame in clip] for clip in pixels]

    @property
    def _side(self) -> int:
        return self.config.image_size // self.config.stride

    def _latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        expected = (self.config.num_frames, 3, self.config.image_size, self.config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"ImageTokenizer: pixel_values must have shape (batch, {', '.join(map(str, expected))}), "
                f"got {tuple(pixel_values.shape)}"
            )
        pixel_values = pixel_values.flatten(0, 1)
        frames = nn.functional.pixel_unshuffle(pixel_values, self.config.patch_size)
        # channels_last is what CPU and GPU convolutions are fastest on.
        return self.encoder(frames.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)

    def _pixels(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        latents = latents.to(self.dtype).permute(0, 3, 1, 2)
        frames = nn.functional.pixel_shuffle(self.decoder(latents), self.config.patch_size)
        return frames.unflatten(0, (batch_size, self.config.num_frames))

    def _frames(self, clip) -> list:
        num_frames = self.config.num_frames
        if isinstance(clip, (str, Path)):
            clip = _open_image(clip)
        if isinstance(clip, np.ndarray) and clip.ndim == 3:
            clip = Image.fromarray(clip)
        if isinstance(clip, Image.Image):
            width, height = clip.size
            if num_frames > 1 and width == num_frames * height:
                return [clip.crop((i * height, 0, (i + 1) * height, height)) for i in range(num_frames)]
            return [clip] * num_frames
        if len(clip) != num_frames:
            raise ValueError(f"ImageTokenizer: a clip has {len(clip)} frames, the tokenizer takes {num_frames}")
        return [_open_image(frame) if isinstance(frame, (str, Path)) else frame for frame in clip]

    def _to_array(self, frame) -> np.ndarray:
        image = frame if isinstance(frame, Image.Image) else Image.fromarray(np.asarray(frame))
        size = (self.config.image_size, self.config.image_size)
        image = image.convert("RGB")
        if image.size != size:
            image = ImageOps.fit(image, size, method=Image.Resampling.BICUBIC)
        return np.asarray(image)


def _open_image(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error
