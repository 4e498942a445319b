"""Quantizers without a learned codebook: every dimension of a latent is rounded for itself.

All codes exist from the start, so none can die and nothing has to be found nearest. They are written here and not
taken from `vector-quantize-pytorch` because their code is saved beside the weights: loading a tokenizer must not need
one more package.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .quantizer import QuantizerOutput, add_latent_noise, in_float32

SATURATED = 2.0  # the tanh of this is 0.96, well within the outermost of some 20 levels


class ScalarQuantizer(nn.Module):
    """What both share: projections to the dimensions that are quantized and back, and the way from ids to latents."""

    num_quantizers = 1

    def __init__(self, dim: int, code_dim: int, warmup_steps: int, latent_noise: float):
        super().__init__()
        self.warmup_steps = warmup_steps
        self.latent_noise = latent_noise
        self.project_in = nn.Linear(dim, code_dim)
        self.project_out = nn.Linear(code_dim, dim)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def lookup(self, token_ids: torch.LongTensor) -> torch.Tensor:
        """Latents `(..., dim)` of ids `(..., 1)`: what `forward` returns for them in eval mode."""
        with torch.autocast(token_ids.device.type, enabled=False):
            return in_float32(self.project_out, self._codes(token_ids.squeeze(-1)))

    def _project(self, latents: torch.Tensor) -> torch.Tensor:
        projected = in_float32(self.project_in, latents)
        if self.training:
            projected = add_latent_noise(projected.flatten(0, -2), self.latent_noise).view_as(projected)
            self.steps += 1
        return projected


class FiniteScalarQuantizer(ScalarQuantizer):
    """Rounds each dimension to one of a few levels: FSQ (Mentzer et al. 2023, arXiv:2309.15505).

    Beyond the paper, its commitment loss holds latents where the levels can still be told apart.

    Args:
        dim: size of the latents that come in and go out.
        levels: how many values each dimension of a code can have, at least 2 each; their product is the number of
            codes. The paper takes at least 5, such as 8, 5, 5, 5 for 1,000 codes.
        warmup_steps: batches in training that pass the bounded latents on unrounded.
        latent_noise: see `tokenizers_4m.quantizer.add_latent_noise`.
    """

    def __init__(self, dim: int, levels: list[int], warmup_steps: int = 0, latent_noise: float = 0.0):
        super().__init__(dim, len(levels), warmup_steps, latent_noise)
        self.levels = list(levels)
        self.codebook_size = math.prod(levels)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize `latents` (..., dim); in training gradients pass straight through the rounding."""
        with torch.autocast(latents.device.type, enabled=False):
            projected = self._project(latents)
            bounded = self._bound(projected)
            token_ids = self._ids(bounded)
            codes = self._codes(token_ids)
            if self.training:
                continuous = self._scale(bounded)
                is_warming_up = self.steps <= self.warmup_steps
                codes = continuous if is_warming_up else continuous + (codes - continuous).detach()
            quantized = in_float32(self.project_out, codes)
            # Left alone, latents grow until all are saturated, where no gradient passes and two codes stand for all.
            saturation_loss = F.relu(projected.abs() - SATURATED).square().mean()
            return QuantizerOutput(quantized, token_ids.unsqueeze(-1), saturation_loss)

    def code_vectors(self) -> torch.Tensor:
        """The codes, `(codebook_size, len(levels))`, each dimension in [-1, 1]."""
        return self._codes(torch.arange(self.codebook_size, device=self.project_in.weight.device))

    def _row(self, values: list[float], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def _bound(self, projected: torch.Tensor) -> torch.Tensor:
        """Squash each dimension so that rounding gives `levels` integers, from -(levels // 2) upwards."""
        levels = self._row(self.levels, projected)
        # A little further than the outer levels, so that they are reached well before saturation.
        half_width = (levels - 1) * (1 + 1e-3) / 2
        offset = (levels % 2 == 0) * 0.5
        return (projected + (offset / half_width).atanh()).tanh() * half_width - offset

    def _scale(self, values: torch.Tensor) -> torch.Tensor:
        return values / self._row([level // 2 for level in self.levels], values)

    def _ids(self, bounded: torch.Tensor) -> torch.LongTensor:
        """The mixed-radix number whose digits the levels are, first dimension fastest."""
        digits = bounded.detach().round().long() + self._row([level // 2 for level in self.levels], bounded).long()
        return (digits * self._basis(digits)).sum(-1)

    def _codes(self, token_ids: torch.LongTensor) -> torch.Tensor:
        levels = torch.tensor(self.levels, device=token_ids.device)
        digits = token_ids.unsqueeze(-1) // self._basis(token_ids) % levels
        return self._scale((digits - levels // 2).float())

    def _basis(self, like: torch.LongTensor) -> torch.LongTensor:
        places = [math.prod(self.levels[:place]) for place in range(len(self.levels))]
        return torch.tensor(places, device=like.device)


class LookupFreeQuantizer(ScalarQuantizer):
    """Keeps the sign of each dimension: LFQ (Yu et al. 2023, arXiv:2310.05737).

    Its entropy loss makes each latent sure of its code, and all codes together used alike. Distances are sums over
    dimensions, so the probability of a code is a product; the average over the latents, of which the entropy is
    taken, is therefore a product of two small matrices and exact, however many codes there are.

    Args:
        dim: size of the latents that come in and go out.
        codebook_size: number of codes, a power of two.
        temperature: of the soft assignment in the entropy loss; the paper's 0.01 is for large batches.
        warmup_steps: batches in training that pass the latents on unrounded.
        latent_noise: see `tokenizers_4m.quantizer.add_latent_noise`.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        temperature: float = 0.1,
        warmup_steps: int = 0,
        latent_noise: float = 0.0,
    ):
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            raise ValueError(f"codebook_size={codebook_size} must be a power of two")
        super().__init__(dim, codebook_size.bit_length() - 1, warmup_steps, latent_noise)
        self.codebook_size = codebook_size
        self.num_bits = codebook_size.bit_length() - 1
        self.temperature = temperature

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize `latents` (..., dim); in training gradients pass straight through the sign."""
        with torch.autocast(latents.device.type, enabled=False):
            projected = self._project(latents)
            token_ids = ((projected > 0) << self._bits(projected)).sum(-1)
            codes = self._codes(token_ids)
            commitment_loss = F.mse_loss(projected, codes)
            entropy_loss = self._entropy_loss(projected.flatten(0, -2))
            if self.training:
                is_warming_up = self.steps <= self.warmup_steps
                codes = projected if is_warming_up else projected + (codes - projected).detach()
            quantized = in_float32(self.project_out, codes)
            return QuantizerOutput(quantized, token_ids.unsqueeze(-1), commitment_loss, entropy_loss)

    def code_vectors(self) -> torch.Tensor:
        """The codes, `(codebook_size, log2(codebook_size))`, each dimension -1 or 1."""
        return self._codes(torch.arange(self.codebook_size, device=self.project_in.weight.device))

    def _bits(self, like: torch.Tensor) -> torch.LongTensor:
        return torch.arange(self.num_bits, device=like.device)

    def _codes(self, token_ids: torch.LongTensor) -> torch.Tensor:
        return ((token_ids.unsqueeze(-1) >> self._bits(token_ids)) & 1).float() * 2 - 1

    def _entropy_loss(self, projected: torch.Tensor) -> torch.Tensor:
        # softmax over {-1, 1} of -(x - c)^2 / temperature, in nats; far from 0 and 1 in logarithms, to stay finite.
        logits = 4 * projected / self.temperature
        ones, zeros = F.logsigmoid(logits), F.logsigmoid(-logits)
        of_each = -(ones.exp() * ones + zeros.exp() * zeros).sum(-1).mean()
        half = self.num_bits // 2
        first, second = (
            _code_probabilities(zeros[:, part], ones[:, part]) for part in (slice(half), slice(half, None))
        )
        average = first.t() @ second / len(projected)
        of_all = -(average * average.clamp_min(1e-12).log()).sum()
        return of_each - of_all


def _code_probabilities(zeros: torch.Tensor, ones: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of bits `(number, bits)` to probabilities of all their combinations `(number, 2 ** bits)`."""
    num_bits = zeros.shape[1]
    combinations = torch.arange(2**num_bits, device=zeros.device).unsqueeze(1) >> torch.arange(
        num_bits, device=zeros.device
    )
    bits = (combinations & 1).to(zeros.dtype)
    return (ones @ bits.t() + zeros @ (1 - bits).t()).exp()
