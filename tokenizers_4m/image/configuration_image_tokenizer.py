"""Configuration of the image tokenizer."""

from huggingface_hub.dataclasses import strict

from ..contract import TokenizerConfig4M


@strict
class ImageTokenizerConfig(TokenizerConfig4M):
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
        codebook_size, code_dim, commitment_weight, quantizer_warmup_steps: see
            `tokenizers_4m.quantizer.VectorQuantizer`.
        image_mean, image_std: pixels in [0, 1] are normalised with `(x - mean) / std`.
    """

    model_type = "nano4m_image_tokenizer"
    modality = "image"

    image_size: int = 64
    num_frames: int = 8
    patch_size: int = 1
    block_out_channels: list[int] | tuple[int, ...] = (64, 128, 256, 256, 512)
    layers_per_block: int = 1
    norm_num_groups: int = 8
    mid_block_add_attention: bool = True
    codebook_size: int = 1024
    code_dim: int = 8
    mse_weight: float = 1.0
    commitment_weight: float = 0.25
    quantizer_warmup_steps: int = 0
    image_mean: float = 0.5
    image_std: float = 0.5

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        if self.image_size < self.stride or self.image_size % self.stride:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of the stride {self.stride} that "
                f"patch_size={self.patch_size} and block_out_channels={list(self.block_out_channels)} give"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels={list(self.block_out_channels)} must be multiples of "
                    f"norm_num_groups={self.norm_num_groups}"
                )

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)

    @property
    def vocab_size(self) -> int:
        return self.codebook_size

    @property
    def token_axes(self) -> dict[str, int]:
        side = self.image_size // self.stride
        return {"frame": self.num_frames, "row": side, "column": side}
