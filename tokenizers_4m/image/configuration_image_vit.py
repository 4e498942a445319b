"""Configuration of the image tokenizer made of two vision transformers."""

from huggingface_hub.dataclasses import strict

from .configuration_frames import FrameTokenizerConfig


@strict
class ImageViTConfig(FrameTokenizerConfig):
    """Size of the pictures, of the network and of the codebook; the defaults are 4M's ViT-B.

    Args:
        patch_size: pixels of a patch along each side, which is the stride.
        hidden_size: of encoder and decoder; a multiple of 64, the size of an attention head.
        num_encoder_layers, num_decoder_layers: transformer blocks.
        post_mlp: one more block of two layers with tanh between them, after the encoder and after the decoder.
        out_conv: two ConvNeXt blocks on the pixels, against visible borders of patches.
        image_size, num_frames, quantizer, codebook_size, code_dim, fsq_levels, mse_weight, commitment_weight,
            entropy_weight, quantizer_warmup_steps, latent_noise, image_mean, image_std: see
            `tokenizers_4m.ImageTokenizerConfig`.
    """

    model_type = "nano4m_image_vit"

    image_size: int = 224
    num_frames: int = 1
    patch_size: int = 16
    hidden_size: int = 768
    num_encoder_layers: int = 12
    num_decoder_layers: int = 12
    post_mlp: bool = False
    out_conv: bool = False
    quantizer: str = "cosine_vq"
    codebook_size: int = 16384
    code_dim: int = 32
    fsq_levels: list[int] | tuple[int, ...] = (8, 5, 5, 5)
    mse_weight: float = 1.0
    commitment_weight: float = 1.0
    entropy_weight: float = 0.1
    quantizer_warmup_steps: int = 0
    latent_noise: float = 0.0
    image_mean: float = 0.5
    image_std: float = 0.5

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        super().validate_architecture()
        if self.hidden_size % 64:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of 64")

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        return self.patch_size
