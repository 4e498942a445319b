"""What the image tokenizers share, whatever their networks: clips in and out, frame by frame."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from transformers.utils import can_return_tuple

from ..autoencoder import AutoencoderOutput, QuantizedAutoencoder
from ..quantizer import CosineVectorQuantizer, VectorQuantizer
from ..scalar_quantizers import FiniteScalarQuantizer, LookupFreeQuantizer
from .configuration_frames import FrameTokenizerConfig


def build_quantizer(config: FrameTokenizerConfig, dim: int) -> nn.Module:
    """The quantizer that `config.quantizer` names, for latents of size `dim`."""
    shared = {"warmup_steps": config.quantizer_warmup_steps, "latent_noise": config.latent_noise}
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(dim, config.fsq_levels, **shared)
    if config.quantizer == "lfq":
        return LookupFreeQuantizer(dim, config.codebook_size, **shared)
    quantizer_class = {"vq": VectorQuantizer, "cosine_vq": CosineVectorQuantizer}[config.quantizer]
    return quantizer_class(dim, config.codebook_size, config.code_dim, **shared)


class FrameAutoencoder(QuantizedAutoencoder):
    """Mixed into the `PreTrainedModel`s that have an `encoder`, a `quantizer` and a `decoder` of single frames.

    The encoder takes `(frames, 3 * patch_size ** 2, rows, columns)`, the decoder returns it; the quantizer takes the
    channels of the latents last.
    """

    main_input_name = "pixel_values"

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the layer that makes the picture, by whose gradients losses are balanced."""
        raise NotImplementedError

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
                f"{type(self).__name__}: pixel_values must have shape (batch, {', '.join(map(str, expected))}), "
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
            raise ValueError(f"{type(self).__name__}: a clip has {len(clip)} frames, the tokenizer takes {num_frames}")
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
