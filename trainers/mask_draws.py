"""The random draws behind masking: how many tokens of each modality, and in which order they are taken.

All work on whole batches. Counts are drawn without looking at single tokens, and an order is one sort of small
integers, so that masking costs less than reading the rows.
"""

import numpy as np


def share_out(
    available: np.ndarray, budget: np.ndarray, lengths: np.ndarray, alphas: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Divide each sample's budget over its modalities, never more than there is, never leaving any unspent.

    Tokens are drawn without replacement with weights share / length, shares from a Dirichlet distribution, so what
    one modality is too short for goes to the others. Of tokens that arrive at random times, each at the rate of its
    weight, the first ones are such a draw (Efraimidis and Spirakis 2006). Of `n` tokens with the same rate the gaps
    between arrivals are exponential with rates `n`, `n - 1`, ... times that one (Renyi 1953), so it is enough to draw
    as many gaps as the budget has tokens.

    Args:
        available: tokens there are, `(batch, modalities)` int64.
        budget: tokens to draw, `(batch,)` int64, at most as many as available.
        lengths: of the modalities, `(modalities,)`.
        alphas: Dirichlet concentrations, `(batch, modalities)`, above 0.

    Returns:
        How many tokens of each modality, `(batch, modalities)` int64.
    """
    longest = min(int(budget.max(initial=0)), int(available.max(initial=0)))
    if longest == 0:
        return np.zeros_like(available)
    # A gamma variable of a small alpha would round to zero, its logarithm does not (Marsaglia and Tsang 2000).
    logs = np.log(generator.standard_gamma(alphas + 1)) - generator.standard_exponential(alphas.shape) / alphas
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    rates = np.maximum(shares / shares.sum(axis=1, keepdims=True), 1e-6) / lengths
    times = generator.standard_exponential((*available.shape, longest))
    with np.errstate(divide="ignore"):  # a token that is not there never arrives
        times /= np.maximum(available[:, :, None] - np.arange(longest), 0)
    np.cumsum(times, axis=2, out=times)
    times /= rates[:, :, None]
    flat = times.reshape(len(times), -1)
    last = np.maximum(budget, 1) - 1
    if (last == last[0]).all():
        end = np.partition(flat, last[0], axis=1)[:, last[0]]
    else:
        end = np.take_along_axis(np.sort(flat, axis=1), last[:, None], axis=1)[:, 0]
    end[budget == 0] = -1.0
    return (times <= end[:, None, None]).sum(axis=2)


def random_order(present: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """Places `0 ... present - 1` of each sample in random order, `(batch, length)`; what follows has no meaning."""
    return _sorted_places(generator.integers(0, 2**32, (len(present), length), dtype=np.uint32), present)


def span_order(
    present: np.ndarray, length: int, mean_span_length: float, generator: np.random.Generator
) -> np.ndarray:
    """As `random_order`, but runs of about `mean_span_length` places (geometrically distributed) stay together."""
    begins = generator.random((len(present), length), dtype=np.float32) < 1 / mean_span_length
    keys = generator.integers(0, 2**32, (len(present), length + 1), dtype=np.uint32)
    return _sorted_places(np.take_along_axis(keys, begins.cumsum(axis=1), axis=1), present)


def _sorted_places(keys: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Places sorted by key, equal keys in order; those from `present` on come last."""
    # The place is kept in the lowest bits of the key: sorting numbers is several times faster than `argsort`.
    length = keys.shape[1]
    mask = np.uint32((1 << (length - 1).bit_length()) - 1)
    places = np.arange(length, dtype=np.uint32)
    keys &= ~mask
    keys |= places
    if (present < length).any():
        keys[places >= present[:, None]] = np.uint32(2**32 - 1)
    keys.sort(axis=1)
    keys &= mask
    return keys
