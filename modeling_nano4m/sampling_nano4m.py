"""Drawing tokens from logits, each sample with random numbers of its own; the settings and their legal values."""

import math
from collections.abc import Callable, Iterable
from numbers import Real
from operator import index

import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .configuration_nano4m import is_whole


def _in_range(least: float, most: float = math.inf) -> Callable[[object], bool]:
    return lambda value: isinstance(value, Real) and math.isfinite(value) and least <= value <= most


# Settings a model may have for each modality, in `generation_config.modality_defaults`, and which values are legal.
SETTINGS = {
    "guidance_scale": (1.0, _in_range(-math.inf)),
    "temperature": (1.0, _in_range(0)),
    "top_k": (0, lambda value: is_whole(value, 0)),
    "top_p": (1.0, lambda value: _in_range(0, 1)(value) and value > 0),
    "min_p": (0.0, _in_range(0, 1)),
    "num_inference_steps": (None, lambda value: value is None or is_whole(value, 1)),
}
# Below, rounding decides between the likeliest tokens, and nothing else is ever drawn.
LEAST_TEMPERATURE = torch.finfo(torch.float32).eps


def expand_seed(seed: int | list[int] | None, size: int) -> list[int]:
    """One seed per sample; None draws the first one afresh. Whole numbers of any type, also as an array or tensor.

    Raises:
        ValueError: for a list of another length, or something else than whole numbers.
    """
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    if hasattr(seed, "tolist"):  # NumPy and torch
        seed = seed.tolist()
    try:
        if isinstance(seed, Iterable):
            seeds = [index(number) for number in seed]
        else:
            seeds = [index(seed) + i for i in range(size)]
    except TypeError as error:
        raise ValueError(f"seed={seed!r} must be a whole number, or one for each sample") from error
    if len(seeds) != size:
        raise ValueError(f"seed: {len(seeds)} seeds for {size} samples")
    return seeds


def random_numbers(
    seeds: list[int], num_steps: int, num_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uniform numbers: order `(batch, tokens)`, noise and sampling `(batch, steps, tokens)` each."""
    # On the CPU whatever the device, so that a seed means the same everywhere.
    draws = torch.stack(
        # Generators take 64 bits.
        [torch.rand(1 + 2 * num_steps, num_tokens, generator=torch.Generator().manual_seed(s % 2**64)) for s in seeds]
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
    """Draw a token per query, `(queries,)`.

    Args:
        logits: `(queries, vocab_size)` float32; the largest of each is finite.
        uniform: one number in [0, 1) for each token to draw, `(queries,)`.
        temperature, top_k, top_p, min_p: see `Nano4MModel.generate`.
    """
    if temperature < LEAST_TEMPERATURE:
        return logits.argmax(-1)
    scores = logits
    if temperature != 1:  # from 0 downwards, for above there is infinity
        scores = scores - scores.amax(-1, keepdim=True)
    # Temperature comes before the nucleus: top_p is a share of the distribution that is sampled from.
    warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        scores = warper(None, scores)
    # Inverse transform sampling spends one uniform number per token, whatever the vocabulary.
    cumulative = scores.softmax(-1).cumsum(-1)
    sampled = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return sampled[:, 0]


def log_probabilities(logits: torch.FloatTensor, ids: torch.LongTensor) -> torch.FloatTensor:
    """Of the ids, `(queries,)`, under the logits, `(queries, vocab_size)`."""
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
