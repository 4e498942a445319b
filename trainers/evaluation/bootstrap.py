"""How far a figure may be off: percentile bootstrap over groups of clips (Efron 1979; Davison and Hinkley 1997, 3.8).

Clips of one recording are not independent, so whole groups are drawn, each with all of its clips.
"""

import numpy as np

NUM_RESAMPLES = 1000


def mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean of `values` `(clips,)`; with `weights` the ratio of their sums, as errors per word."""
    return float(np.sum(values) / (len(values) if weights is None else np.sum(weights)))


def interval(
    values: np.ndarray, weights: np.ndarray | None = None, groups: np.ndarray | None = None, seed: int = 0
) -> list[float] | None:
    """Where `mean(values, weights)` would lie in 95 of 100 draws of as many groups, `[low, high]`.

    Args:
        values: one number per clip, `(clips,)`.
        weights: for a ratio of sums, `(clips,)`, not negative; draws in which they sum to 0 do not count.
        groups: group of each clip, int `(clips,)`; each clip is one of its own if not given.
        seed: of the resampling.

    Returns:
        None for fewer than two groups, which say nothing about their spread.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    numbers = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = numbers.max(initial=-1) + 1
    if count < 2:
        return None
    sums, totals = np.bincount(numbers, values, count), np.bincount(numbers, weights, count)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(count, size=count) for _ in range(NUM_RESAMPLES))
    drawn = np.array([(sums[draw].sum(), totals[draw].sum()) for draw in draws])
    drawn = drawn[drawn[:, 1] > 0]
    return [float(bound) for bound in np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])]


def estimate(
    name: str,
    values: np.ndarray,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict:
    """A figure and its interval, as results hold them: `{name: mean, name_interval: [low, high]}`."""
    return {name: mean(values, weights), f"{name}_interval": interval(values, weights, groups, seed)}
