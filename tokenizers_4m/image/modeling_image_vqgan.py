"""Image tokenizer with exactly the network of VQGAN, so that it can hold weights that others have trained.

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv:2012.09841); encoder and decoder
are those of diffusers' `VQModel`. The 1x1 convolutions before and after its codebook are the projections of our
quantizer. `scripts/convert_checkpoint.py` reads the weights.
"""

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn
from transformers import PreTrainedModel

from .configuration_image_vqgan import ImageVQGANConfig
from .modeling_frames import FrameAutoencoder, build_quantizer


class ImageVQGAN(FrameAutoencoder, PreTrainedModel):
    """Turns clips of `num_frames` pictures into `num_frames * (image_size / stride) ** 2` token ids."""

    config: ImageVQGANConfig
    config_class = ImageVQGANConfig
    base_model_prefix = ""

    def __init__(self, config: ImageVQGANConfig):
        super().__init__(config)
        has_attention = [level in config.attention_levels for level in range(len(config.block_out_channels))]
        shared = {
            "block_out_channels": tuple(config.block_out_channels),
            "layers_per_block": config.layers_per_block,
            "norm_num_groups": config.norm_num_groups,
            "mid_block_add_attention": config.mid_block_add_attention,
        }
        self.encoder = Encoder(
            out_channels=config.latent_channels,
            down_block_types=tuple("AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in has_attention),
            double_z=False,
            **shared,
        )
        self.quantizer = build_quantizer(config, config.latent_channels)
        self.decoder = Decoder(
            in_channels=config.latent_channels,
            up_block_types=tuple(
                "AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in reversed(has_attention)
            ),
            **shared,
        )
        self.post_init()

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight
