"""What the configurations of the image tokenizers share; each declares the fields itself."""

import math

from ..contract import TokenizerConfig4M

QUANTIZERS = ("vq", "cosine_vq", "fsq", "lfq")


class FrameTokenizerConfig(TokenizerConfig4M):
    """The grid of tokens, the size of the vocabulary, and the checks of what the kinds have in common."""

    modality = "image"

    def validate_architecture(self):
        """Called by transformers after the fields are set."""
        if self.image_size < self.stride or self.image_size % self.stride:
            raise ValueError(f"image_size={self.image_size} must be a multiple of the stride, {self.stride}")
        if self.quantizer not in QUANTIZERS:
            raise ValueError(f"quantizer={self.quantizer!r} must be one of {', '.join(QUANTIZERS)}")
        if self.quantizer == "fsq" and not (self.fsq_levels and min(self.fsq_levels) >= 2):
            raise ValueError(f"fsq_levels={list(self.fsq_levels)} must be numbers of at least 2")
        if self.quantizer == "lfq" and self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size={self.codebook_size} must be a power of two for quantizer=lfq")

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return math.prod(self.fsq_levels) if self.quantizer == "fsq" else self.codebook_size

    @property
    def token_axes(self) -> dict[str, int]:
        side = self.image_size // self.stride
        return {"frame": self.num_frames, "row": side, "column": side}


class ConvolutionalTokenizerConfig(FrameTokenizerConfig):
    """Of encoders that halve the resolution from level to level, each with its own number of channels."""

    def validate_architecture(self):
        super().validate_architecture()
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
