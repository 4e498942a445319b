"""Configuration of the image tokenizer."""

from huggingface_hub.dataclasses import strict

from .configuration_frames import ConvolutionalTokenizerConfig


@strict
class ImageTokenizerConfig(ConvolutionalTokenizerConfig):
    """Size of the pictures, of the network and of the codebook.

    Args:
        image_size: height and width of a frame in pixels; a multiple of the stride.
        num_frames: frames per clip; each becomes its own grid of tokens.
        patch_size: pixels of a patch, along each side, that become one position with as many more channels before
            the first convolution. 1 is VQGAN; more saves the costly convolutions at full resolution.
        block_out_channels: channels at each resolution. The stride is `patch_size * 2 ** (len - 1)`: five entries
            and patches of one pixel make the f16 tokenizer of VQGAN.
        layers_per_block: residual blocks at each resolution, in encoder and decoder each.
        norm_num_groups: groups of the group normalisations.
        mid_block_add_attention: VQGAN's middle block at the lowest resolution, two residual blocks with self-attention
            between them.
        mse_weight: of the squared error beside the absolute one; edges and other large errors count more with it.
        quantizer: `vq` (codebook by moving averages), `cosine_vq` (the same on the unit sphere), `fsq` (rounding) or
            `lfq` (signs); see `tokenizers_4m.quantizer` and `tokenizers_4m.scalar_quantizers`.
        codebook_size: number of codes, but with `fsq`; a power of two with `lfq`.
        code_dim: size of a code of `vq` and `cosine_vq`.
        fsq_levels: values that each dimension of a code of `fsq` can have; their product is the number of codes.
        commitment_weight, entropy_weight: of the losses of the quantizer; only `lfq` has an entropy loss.
        quantizer_warmup_steps: training steps with unquantized latents.
        latent_noise: of the latents in training, see `tokenizers_4m.quantizer.add_latent_noise`.
        image_mean, image_std: pixels in [0, 1] are normalised with `(x - mean) / std`.
    """

    model_type = "nano4m_image_tokenizer"

    image_size: int = 64
    num_frames: int = 8
    patch_size: int = 1
    block_out_channels: list[int] | tuple[int, ...] = (64, 128, 256, 256, 512)
    layers_per_block: int = 1
    norm_num_groups: int = 8
    mid_block_add_attention: bool = True
    quantizer: str = "vq"
    codebook_size: int = 1024
    code_dim: int = 8
    fsq_levels: list[int] | tuple[int, ...] = (8, 5, 5, 5)
    mse_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    quantizer_warmup_steps: int = 0
    latent_noise: float = 0.0
    image_mean: float = 0.5
    image_std: float = 0.5
