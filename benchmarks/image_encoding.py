"""Pictures to token ids: the image tokenizer of configs/tokenizers/image_f16.yaml beside the VQGAN of the paper.

The baseline is diffusers' `VQModel` with the f16 configuration of CompVis (128 channels times 1, 1, 2, 2, 4, two
residual blocks a level, self-attention at 16x16). Both make 16 x 16 ids of 1,024 from a picture of 256 pixels.
"""

from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
import yaml
from diffusers import VQModel
from torch import nn

from benchmarks.measures import Measure, Sizes, repeat
from tokenizers_4m import ImageTokenizer, ImageTokenizerConfig

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "tokenizers" / "image_f16.yaml"


def our_tokenizer(image_size: int) -> ImageTokenizer:
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    known = {field.name for field in fields(ImageTokenizerConfig)}
    chosen = {name: value for name, value in recipe.items() if name in known}
    return ImageTokenizer(ImageTokenizerConfig(image_size=image_size, num_frames=1, **chosen)).eval()


def baseline_tokenizer() -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 128, 256, 256, 512),
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=1024,
        vq_embed_dim=256,
    ).eval()


@torch.no_grad()
def encode_images(side: str, sizes: Sizes) -> dict:
    """Returns `images_per_second`, the `parameters` of encoder and quantizer, and `num_tokens` of a picture."""
    torch.manual_seed(0)
    pictures = torch.rand(sizes.image_batch_size, 3, sizes.image_size, sizes.image_size) * 2 - 1
    if side == "ours":
        model = our_tokenizer(sizes.image_size)
        parts = model.encoder, model.quantizer.project_in

        def encode() -> torch.Tensor:
            return model.encode(pictures[:, None])
    else:
        model = baseline_tokenizer()
        parts = model.encoder, model.quant_conv

        def encode() -> torch.Tensor:
            return model.quantize(model.encode(pictures).latents)[2][2]

    def encode_again() -> int:
        encode()
        return len(pictures)

    token_ids = encode()
    encoded, seconds = repeat(encode_again, sizes.image_seconds)
    return {
        "images_per_second": encoded / seconds,
        "parameters": sum(_size(part) for part in parts),
        "num_tokens": token_ids.numel() // len(pictures),
    }


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def image_encoding() -> Measure:
    sides = partial(encode_images, "ours"), partial(encode_images, "baseline")
    return Measure("image_encoding", "images/s", "images_per_second", *sides, 3, 10)
