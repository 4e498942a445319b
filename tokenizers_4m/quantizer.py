"""Vector quantizers with a codebook that follows the encoder by moving averages, and stays alive.

The codebook is learned as in VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446): every code is the
exponential moving average of the latents assigned to it, and the encoder is held near its codes by a
commitment loss. Codes live in a low-dimensional space (ViT-VQGAN, Yu et al. 2022, arXiv:2110.04627), and
several codebooks may quantize what the previous ones left over (SoundStream, Zeghidour et al. 2021,
arXiv:2107.03312). Codes that nothing uses any more are re-seeded from the current batch.

Quantizers without a learned codebook are in `scalar_quantizers`.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


@dataclass
class QuantizerOutput:
    """What every quantizer returns.

    quantized: `(..., dim)`.
    token_ids: `(..., num_quantizers)` int64.
    commitment_loss: scalar float32, how far the latents are from their codes, or from where they can be told apart.
    entropy_loss: scalar float32, small when each latent is sure of its code and all codes are used; None if the
        quantizer has no such term.
    """

    quantized: torch.Tensor
    token_ids: torch.LongTensor
    commitment_loss: torch.Tensor
    entropy_loss: torch.Tensor | None = None


class VectorQuantizer(nn.Module):
    """Replaces each latent vector by the nearest code, `num_quantizers` times over the residual.

    Args:
        dim: size of the latents that come in and go out.
        codebook_size: codes per codebook.
        code_dim: size of a code; latents are projected to it before the search and back after it.
        num_quantizers: codebooks used one after the other.
        decay: of the moving averages.
        dead_code_threshold: a code is re-seeded once it gets, on average, less than this part of an equal share
            of the latents.
        warmup_steps: batches in training that pass the latents on unquantized; then the codebooks start on latents
            worth coding. Codes set up on an untrained encoder hold it back for long.
        latent_noise: see `add_latent_noise`.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        code_dim: int = 8,
        num_quantizers: int = 1,
        decay: float = 0.95,
        dead_code_threshold: float = 0.1,
        warmup_steps: int = 0,
        latent_noise: float = 0.0,
    ):
        super().__init__()
        self.codebook_size = codebook_size
        self.num_quantizers = num_quantizers
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold
        self.warmup_steps = warmup_steps
        self.latent_noise = latent_noise
        self.project_in = nn.Linear(dim, code_dim)
        self.project_out = nn.Linear(code_dim, dim)
        self.register_buffer("codebooks", torch.randn(num_quantizers, codebook_size, code_dim))
        self.register_buffer("assigned", torch.zeros(num_quantizers, codebook_size))
        self.register_buffer("assigned_sum", torch.zeros(num_quantizers, codebook_size, code_dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize `latents` (..., dim). In training the codebooks move and gradients pass straight through."""
        shape = latents.shape[:-1]
        # The search runs in float32: under autocast, half precision would flip ids between nearby codes.
        with torch.autocast(latents.device.type, enabled=False):
            projected = self._project(latents).flatten(0, -2)
            if self.training:
                projected = add_latent_noise(projected, self.latent_noise)
                self.steps += 1
                if self.steps <= self.warmup_steps:
                    token_ids = torch.zeros(*shape, self.num_quantizers, dtype=torch.int64, device=latents.device)
                    quantized = in_float32(self.project_out, projected).view(*shape, -1)
                    return QuantizerOutput(quantized, token_ids, projected.new_zeros(()))
            token_ids, codes = self._quantize(projected)
            commitment_loss = F.mse_loss(projected, codes)
            if self.training:
                codes = projected + (codes - projected).detach()
            quantized = in_float32(self.project_out, codes)
        return QuantizerOutput(
            quantized=quantized.view(*shape, -1),
            token_ids=token_ids.view(*shape, self.num_quantizers),
            commitment_loss=commitment_loss,
        )

    def lookup(self, token_ids: torch.LongTensor) -> torch.Tensor:
        """Latents `(..., dim)` of ids `(..., num_quantizers)`: what `forward` returns for them in eval mode."""
        with torch.autocast(token_ids.device.type, enabled=False):
            codes = self._sum_codes(token_ids.flatten(0, -2))
            return in_float32(self.project_out, codes).view(*token_ids.shape[:-1], -1)

    def code_vectors(self) -> torch.Tensor:
        """The codes, `(codebook_size, num_quantizers * code_dim)`: an id means one code in each codebook."""
        return self.codebooks.transpose(0, 1).flatten(1)

    @torch.no_grad()
    def load_codes(self, codes: torch.Tensor) -> None:
        """Take over trained `codes` `(num_quantizers, codebook_size, code_dim)`; training goes on from them."""
        self.codebooks.copy_(codes)
        self.assigned.fill_(1.0)
        self.assigned_sum.copy_(codes)
        # Past the step on which the first batch would set up the codebooks.
        self.steps.fill_(self.warmup_steps + 1)

    def _project(self, latents: torch.Tensor) -> torch.Tensor:
        return in_float32(self.project_in, latents)

    def _nearest(self, latents: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
        codebook = codebook.float()
        # |x - c|^2 without |x|^2, which is the same for every code.
        return (codebook.square().sum(-1) - 2 * latents @ codebook.t()).argmin(-1)

    def _sum_codes(self, token_ids: torch.LongTensor) -> torch.Tensor:
        codes = self.codebooks[0][token_ids[:, 0]].float()
        for level in range(1, self.num_quantizers):
            codes = codes + self.codebooks[level][token_ids[:, level]]
        return codes

    def _quantize(self, projected: torch.Tensor) -> tuple[torch.LongTensor, torch.Tensor]:
        if self.training and self.steps == self.warmup_steps + 1:
            self._initialize(projected.detach())
        residual = projected.detach()
        levels = []
        for level in range(self.num_quantizers):
            ids = self._nearest(residual, self.codebooks[level])
            levels.append(ids)
            chosen = self.codebooks[level][ids]
            if self.training:
                self._move_codebook(level, residual, ids)
            residual = residual - chosen
        token_ids = torch.stack(levels, dim=-1)
        # Summed the way `lookup` sums, so that decoding the ids equals the reconstruction bit for bit.
        codes = projected.detach() - residual if self.training else self._sum_codes(token_ids)
        return token_ids, codes

    @torch.no_grad()
    def _initialize(self, projected: torch.Tensor) -> None:
        """Start every code on a latent of the batch, so that no code starts out of reach."""
        residual, number = projected, projected.new_tensor(float(len(projected)))
        all_reduce(number)
        for level in range(self.num_quantizers):
            self.codebooks[level].copy_(_spread_rows(residual, self.codebook_size))
            broadcast(self.codebooks[level])
            self._restart(level, torch.ones_like(self.assigned[level], dtype=torch.bool), float(number))
            residual = residual - self.codebooks[level][self._nearest(residual, self.codebooks[level])]

    @torch.no_grad()
    def _move_codebook(self, level: int, latents: torch.Tensor, ids: torch.LongTensor) -> None:
        dead, num_latents = follow_use(self.assigned[level], ids, self.decay, self.dead_code_threshold)
        sums = torch.zeros_like(self.assigned_sum[level]).index_add_(0, ids, latents)
        all_reduce(sums)
        self.assigned_sum[level].lerp_(sums, 1 - self.decay)
        self.codebooks[level].copy_(self.assigned_sum[level] / self.assigned[level].clamp_min(1e-6).unsqueeze(-1))
        if dead.any():
            error = (latents - self.codebooks[level][ids]).square().sum(-1)
            self.codebooks[level][dead] = draw_seeds(latents, error, self.codebook_size)[dead]
            self._restart(level, dead, num_latents)

    def _restart(self, level: int, which: torch.BoolTensor, num_latents: float) -> None:
        """Give codes the history of one that has had a part of an equal share: they move, but not wildly."""
        share = use_of_new_codes(num_latents, self.codebook_size, self.dead_code_threshold)
        self.assigned[level][which] = share
        self.assigned_sum[level][which] = share * self.codebooks[level][which]


class CosineVectorQuantizer(VectorQuantizer):
    """Codes and latents on the unit sphere, so that the nearest code is the one at the smallest angle (ViT-VQGAN).

    Takes the arguments of `VectorQuantizer`, but only one codebook: what a first code leaves over is on no sphere.
    """

    def __init__(self, dim: int, codebook_size: int, code_dim: int = 8, **kwargs):
        if kwargs.get("num_quantizers", 1) != 1:
            raise ValueError(f"num_quantizers={kwargs['num_quantizers']}: the cosine quantizer has one codebook")
        super().__init__(dim, codebook_size, code_dim, **kwargs)

    def _project(self, latents: torch.Tensor) -> torch.Tensor:
        return F.normalize(super()._project(latents), dim=-1)

    def _nearest(self, latents: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
        # Codes of other people's weights may have lost their unit length.
        return (latents @ F.normalize(codebook.float(), dim=-1).t()).argmax(-1)

    @torch.no_grad()
    def _move_codebook(self, level: int, latents: torch.Tensor, ids: torch.LongTensor) -> None:
        super()._move_codebook(level, latents, ids)
        self.codebooks[level].copy_(F.normalize(self.codebooks[level], dim=-1))


def in_float32(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Apply `layer` in float32, also where weights or inputs are kept in half precision."""
    return F.linear(inputs.float(), layer.weight.float(), layer.bias.float())


def add_latent_noise(latents: torch.Tensor, latent_noise: float) -> torch.Tensor:
    """Add Gaussian noise to `latents` `(number, dim)`, of `latent_noise` times the deviation of each dimension.

    In training, it makes the encoder put what matters further apart than the noise reaches, so that changes of the
    input too small to see change fewer ids.
    """
    if latent_noise == 0.0:
        return latents
    return latents + latent_noise * latents.detach().std(0, correction=0) * torch.randn_like(latents)


def codebook_usage(token_ids: torch.LongTensor, vocab_size: int) -> dict[str, float]:
    """How much of a vocabulary a set of ids uses.

    Returns `used_codes` (how many distinct ids occur) and `perplexity` (exp of the entropy of their
    frequencies, in [1, vocab_size]).
    """
    counts = torch.bincount(token_ids.flatten(), minlength=vocab_size).float()
    frequencies = counts[counts > 0] / counts.sum()
    entropy = -(frequencies * frequencies.log()).sum()
    return {"used_codes": int((counts > 0).sum()), "perplexity": float(entropy.exp())}


def follow_use(
    use: torch.Tensor, token_ids: torch.LongTensor, decay: float, dead_code_threshold: float
) -> tuple[torch.BoolTensor, float]:
    """Update how often codes are taken, on average, `use` `(codebook_size,)`, by the ids `(latents,)` of a batch.

    Returns:
        which codes are dead, `(codebook_size,)`: they get less than a part of an equal share of the latents; and how
        many latents there are in all processes.
    """
    counts = torch.zeros_like(use).index_add_(0, token_ids, torch.ones_like(token_ids, dtype=use.dtype))
    all_reduce(counts)
    use.lerp_(counts, 1 - decay)
    num_latents = float(counts.sum())
    return use < dead_code_threshold * num_latents / len(use), num_latents


def use_of_new_codes(num_latents: float, codebook_size: int, dead_code_threshold: float) -> float:
    """What a code that was dead counts as taken: enough to live for some batches."""
    return 3 * dead_code_threshold * num_latents / codebook_size


def draw_seeds(latents: torch.Tensor, error: torch.Tensor, number: int) -> torch.Tensor:
    """Rows of `latents` for dead codes, `(number, dim)`, the same in every process.

    Taken from where codes are missing most: as in the steps of k-means++, latents weigh by their squared error.
    """
    seeds = latents[torch.multinomial(error.clamp_min(1e-12), number, replacement=True)]
    broadcast(seeds)
    return seeds


def _spread_rows(rows: torch.Tensor, number: int) -> torch.Tensor:
    """`number` rows drawn one after the other, far ones more likely: k-means++ (Arthur and Vassilvitskii 2007).

    Drawn evenly, most codes would go to what is frequent, such as background, however little it varies.
    """
    chosen = rows.new_empty(number, rows.shape[1])
    distance = rows.new_full((len(rows),), torch.inf)
    pick = torch.randint(len(rows), (1,), device=rows.device)
    for index in range(number):
        chosen[index] = rows[pick[0]]
        distance = torch.minimum(distance, (rows - chosen[index]).square().sum(-1))
        pick = torch.multinomial(distance.clamp_min(1e-12), 1)
    return chosen


def all_reduce(tensor: torch.Tensor) -> None:
    """Sum over the processes of a training, if there are several."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)


def broadcast(tensor: torch.Tensor) -> None:
    """Take over what the first process of a training has."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, src=0)
