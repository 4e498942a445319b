"""Drawing tokens from logits, each sample with random numbers of its own."""

import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def expand_seed(seed: int | list[int] | None, size: int) -> list[int]:
    """One seed per sample; ValueError if a list has another length. None draws the first one afresh."""
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    seeds = [seed + i for i in range(size)] if isinstance(seed, int) else list(seed)
    if len(seeds) != size:
        raise ValueError(f"seed: {len(seeds)} seeds for {size} samples")
    return seeds


def random_numbers(
    seeds: list[int], num_steps: int, num_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uniform numbers: order `(batch, tokens)`, noise and sampling `(batch, steps, tokens)` each."""
    # On the CPU whatever the device, so that a seed means the same everywhere.
    draws = torch.stack(
        [torch.rand(1 + 2 * num_steps, num_tokens, generator=torch.Generator().manual_seed(s)) for s in seeds]
    ).to(device)
    return draws[:, 0], draws[:, 1 : 1 + num_steps], draws[:, 1 + num_steps :]


def sample(
    logits: torch.FloatTensor,
    uniform: torch.FloatTensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.LongTensor:
    """Draw a token per position, `(batch, queries)`.

    Args:
        logits: `(batch, queries, vocab_size)` float32.
        uniform: one number in [0, 1) for each token to draw, `(batch, queries)`.
        temperature, top_k, top_p, min_p: see `Nano4MModel.generate`.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.flatten(0, 1)
    # Temperature comes before the nucleus: top_p is a share of the distribution that is sampled from.
    warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        scores = warper(None, scores)
    # Inverse transform sampling spends one uniform number per token, whatever the vocabulary.
    cumulative = scores.softmax(-1).cumsum(-1)
    sampled = torch.searchsorted(cumulative, uniform.flatten()[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return sampled.view(uniform.shape)
