"""The random draws behind masking: how many tokens of each modality, and in which order they are taken.

All work on whole batches. Counts are drawn without looking at single tokens, and an order is one sort of small
integers, so that masking costs less than reading the rows.
"""

import numpy as np

Alphas = float | dict[str, float]


def alpha_mixture(
    names: list[str], mixture: dict[str, Alphas | list[Alphas]], weights: list[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Write out a mixture of Dirichlet concentrations.

    Args:
        names: the modalities.
        mixture: for each field its concentrations: a number for all modalities, a dictionary in which one that is not
            named has 1, or a list of these; of lists, one entry is drawn, the same of all fields.
        weights: how often each entry is drawn; equally often if None.

    Returns:
        Concentrations `(entries, fields, modalities)`, and the probability of each entry `(entries,)`.

    Raises:
        ValueError: for unknown modalities, numbers out of range, and lists of different lengths.
    """
    lists = {field: alphas if isinstance(alphas, list) else [alphas] for field, alphas in mixture.items()}
    size = max(1, *map(len, lists.values()))
    table = []
    for field, alphas in lists.items():
        if len(alphas) not in (1, size):
            raise ValueError(f"{field} has {len(alphas)} entries: needs 1 or, as the longest list has, {size}")
        named = [each if isinstance(each, dict) else dict.fromkeys(names, each) for each in alphas]
        for each in named:
            if unknown := set(each) - set(names):
                raise ValueError(f"{field}: unknown modality {min(unknown)!r}; there are {', '.join(names)}")
            if not all(isinstance(alpha, int | float) and 0 < alpha < np.inf for alpha in each.values()):
                raise ValueError(f"{field}={mixture[field]!r} must hold finite numbers above 0")
        table.append([[float(each.get(name, 1.0)) for name in names] for each in named * (size // len(named))])
    weights = [1.0] * size if weights is None else weights
    if len(weights) != size or not all(0 <= weight < np.inf for weight in weights) or not sum(weights) > 0:
        raise ValueError(f"alpha_weights={weights} must be {size} finite numbers of at least 0, one of them above")
    return np.array(table).swapaxes(0, 1), np.array(weights, dtype=float) / sum(weights)


def share_out(
    available: np.ndarray, budget: np.ndarray, alphas: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Divide each sample's budget over its modalities, never more than there is, never leaving any unspent.

    In proportion to a draw from a Dirichlet distribution, as 4M does (arXiv:2312.06647). What a modality is too short
    for goes to the others, in the same proportion. Of the fractions that are left, each becomes a whole token with
    its own probability (systematic sampling, Madow 1949), so the mean over draws is exact.

    Args:
        available: tokens there are, `(batch, modalities)` int64.
        budget: tokens to draw, `(batch,)` int64, at most as many as available.
        alphas: Dirichlet concentrations, `(batch, modalities)`, above 0.

    Returns:
        How many tokens of each modality, `(batch, modalities)` int64.
    """
    # A gamma variable of a small alpha would round to zero, its logarithm does not (Marsaglia and Tsang 2000).
    logs = np.log(generator.standard_gamma(alphas + 1)) - generator.standard_exponential(alphas.shape) / alphas
    # A modality with next to no share still takes what is too much for all others.
    shares = np.maximum(np.exp(logs - logs.max(axis=1, keepdims=True)), 1e-6)
    # With `level * share` for each modality, or all it has if that is less, the budget is spent. The shorter ones for
    # their share are filled first, and the level is the highest that any number of full ones asks for.
    order = np.argsort(available / shares, axis=1)
    filled, open_shares = (np.take_along_axis(array, order, axis=1) for array in (available, shares))
    before = filled.cumsum(axis=1) - filled
    level = ((budget[:, None] - before) / open_shares[:, ::-1].cumsum(axis=1)[:, ::-1]).max(axis=1, keepdims=True)
    exact = np.minimum(level * shares, available)
    whole = np.floor(exact)
    # In units of 2^-20 sums are exact: a modality without a fraction gets no more, and all together get the budget.
    fractions = np.rint((exact - whole).cumsum(axis=1) * 2**20) / 2**20
    marks = np.floor(fractions + generator.random((len(budget), 1)))
    return (whole + np.diff(marks, axis=1, prepend=0)).astype(np.int64)


def random_order(present: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """Places `0 ... present - 1` of each sample in random order, `(batch, length)`; what follows has no meaning."""
    return _sorted_places(_random_keys(len(present), length, generator), present)


def span_order(
    present: np.ndarray, length: int, mean_span_length: float, generator: np.random.Generator
) -> np.ndarray:
    """As `random_order`, but runs of about `mean_span_length` places (geometrically distributed) stay together."""
    begins = generator.random((len(present), length), dtype=np.float32) < 1 / mean_span_length
    keys = _random_keys(len(present), length + 1, generator)
    return _sorted_places(np.take_along_axis(keys, begins.cumsum(axis=1), axis=1), present)


def _random_keys(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Random 32 bits each; two of each number that the generator is made of, at half the cost of `integers`."""
    numbers = generator.bit_generator.random_raw((rows * columns + 1) // 2)
    return numbers.view(np.uint32)[: rows * columns].reshape(rows, columns)


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
