"""What the tokenizers that are quantized autoencoders share: their output, losses and initial weights.

Every residual block starts as the identity (Zhang et al. 2019, arXiv:1901.09321), and unlike in VQGAN neither half
normalises its output: a linear path leads from input to reconstruction. Training starts from what a linear
autoencoder can do, which saves most of its steps.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .contract import TokenizerContract
from .quantizer import QuantizerOutput, VectorQuantizer
from .scalar_quantizers import FiniteScalarQuantizer, LookupFreeQuantizer


@dataclass
class AutoencoderOutput(ModelOutput):
    """
    loss: scalar float32, the weighted sum of the parts below.
    losses: each part before weighting, scalars: `l1`, `mse`, `commitment`, and `entropy` if the quantizer has it.
    reconstruction: what the decoder makes of the quantized latents, normalised and shaped like what was encoded.
    token_ids: `(batch, num_tokens)` int64.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    reconstruction: torch.FloatTensor | None = None
    token_ids: torch.LongTensor | None = None


class QuantizedAutoencoder(TokenizerContract):
    """Mixed into the `PreTrainedModel`s that encode, quantize with their `quantizer`, and decode."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, VectorQuantizer):
            init.normal_(module.codebooks)
            init.zeros_(module.assigned)
            init.zeros_(module.assigned_sum)
            init.zeros_(module.steps)
        elif isinstance(module, (FiniteScalarQuantizer, LookupFreeQuantizer)):
            init.zeros_(module.steps)
        elif getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def token_vectors(self) -> torch.FloatTensor:
        """The codes, `(vocab_size, dim)`: an id means one code in each codebook."""
        return self.quantizer.code_vectors()

    def _score(
        self, reconstruction: torch.Tensor, original: torch.Tensor, quantized: QuantizerOutput
    ) -> AutoencoderOutput:
        """The output of `forward`: how far `reconstruction` is from `original`, in float32."""
        difference = reconstruction.float() - original.float()
        losses = {
            "l1": difference.abs().mean(),
            "mse": difference.square().mean(),
            "commitment": quantized.commitment_loss,
        }
        config = self.config
        loss = losses["l1"] + config.mse_weight * losses["mse"] + config.commitment_weight * losses["commitment"]
        if quantized.entropy_loss is not None:
            losses["entropy"] = quantized.entropy_loss
            loss = loss + config.entropy_weight * losses["entropy"]
        token_ids = quantized.token_ids.reshape(len(original), config.num_tokens)
        return AutoencoderOutput(loss, losses, reconstruction, token_ids)
