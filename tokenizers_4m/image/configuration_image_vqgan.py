"""Configuration of the image tokenizer with the network of the VQGAN paper."""

from huggingface_hub.dataclasses import strict

from .configuration_frames import ConvolutionalTokenizerConfig


@strict
class ImageVQGANConfig(ConvolutionalTokenizerConfig):
    """Size of the pictures, of the network and of the codebook; the defaults are the paper's f16 model.

    Args:
        block_out_channels: channels at each resolution; the stride is `2 ** (len - 1)`.
        layers_per_block: residual blocks at each resolution of the encoder; the decoder has one more.
        attention_levels: places in `block_out_channels` where self-attention follows every residual block.
        mid_block_add_attention: self-attention between the two residual blocks at the lowest resolution.
        latent_channels: that the encoder gives the quantizer.
        norm_num_groups: groups of the group normalisations.
        image_size, num_frames, quantizer, codebook_size, code_dim, fsq_levels, mse_weight, commitment_weight,
            entropy_weight, quantizer_warmup_steps, latent_noise, image_mean, image_std: see
            `tokenizers_4m.ImageTokenizerConfig`.
    """

    model_type = "nano4m_image_vqgan"
    patch_size = 1

    image_size: int = 256
    num_frames: int = 1
    block_out_channels: list[int] | tuple[int, ...] = (128, 128, 256, 256, 512)
    layers_per_block: int = 2
    attention_levels: list[int] | tuple[int, ...] = (4,)
    mid_block_add_attention: bool = True
    latent_channels: int = 256
    norm_num_groups: int = 32
    quantizer: str = "vq"
    codebook_size: int = 1024
    code_dim: int = 256
    fsq_levels: list[int] | tuple[int, ...] = (8, 5, 5, 5)
    mse_weight: float = 0.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    quantizer_warmup_steps: int = 0
    latent_noise: float = 0.0
    image_mean: float = 0.5
    image_std: float = 0.5

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        super().validate_architecture()
        if not set(self.attention_levels) <= set(range(len(self.block_out_channels))):
            raise ValueError(
                f"attention_levels={list(self.attention_levels)} must be places in "
                f"block_out_channels={list(self.block_out_channels)}, counted from 0"
            )
