"""How far a figure may be off: percentile bootstrap over clips (Efron 1979)."""

import numpy as np

NUM_RESAMPLES = 1000


def mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean of `values` `(clips,)`; with `weights` the ratio of their sums, as errors per word."""
    return float(np.sum(values) / (len(values) if weights is None else np.sum(weights)))


def interval(values: np.ndarray, weights: np.ndarray | None = None, seed: int = 0) -> list[float] | None:
    """Where `mean(values, weights)` would lie in 95 of 100 draws of as many clips, `[low, high]`.

    Args:
        values: one number per clip, `(clips,)`.
        weights: for a ratio of sums, `(clips,)`, positive.
        seed: of the resampling.

    Returns:
        None for fewer than two clips, which say nothing about their spread.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(values), size=len(values)) for _ in range(NUM_RESAMPLES))
    means = [values[draw].sum() / weights[draw].sum() for draw in draws]
    return [float(bound) for bound in np.percentile(means, [2.5, 97.5])]


def estimate(name: str, values: np.ndarray, weights: np.ndarray | None = None, seed: int = 0) -> dict:
    """A figure and its interval, as results hold them: `{name: mean, name_interval: [low, high]}`."""
    return {name: mean(values, weights), f"{name}_interval": interval(values, weights, seed)}
