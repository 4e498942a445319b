"""Finding the medium that belongs to a condition among those of other clips."""

import numpy as np

from modeling_nano4m import Nano4MPipeline
from trainers.evaluation.bootstrap import interval
from trainers.evaluation.clips import EvaluationClips
from trainers.evaluation.likelihood import log_probabilities

RANKS = (1, 5, 10)


def retrieval(
    pipe: Nano4MPipeline,
    clips: EvaluationClips,
    conditions: tuple[str, ...],
    target: str,
    numbers: np.ndarray,
    classes: np.ndarray | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """Recall at 1, 5 and 10 when each of some clips is asked for among all of them.

    Candidates are ranked by log p(target | condition) - log p(target): how much likelier the condition makes them.
    Without the second term, those that are likely anyway would win whatever the condition.

    Args:
        numbers: the clips, which are both the questions and the candidates.
        classes: class of each of them, if known; see `recall`.

    Returns:
        What `recall` says, for this direction.
    """
    size = len(numbers)
    questions, candidates = np.repeat(numbers, size), np.tile(numbers, size)
    scores = log_probabilities(pipe, clips, conditions, target, questions, candidates, batch_size, seed)
    prior = log_probabilities(pipe, clips, (), target, numbers, numbers, batch_size, seed)
    return recall(scores.reshape(size, size) - prior, classes, clips.groups[numbers], seed)


def recall(
    scores: np.ndarray, classes: np.ndarray | None = None, groups: np.ndarray | None = None, seed: int = 0
) -> dict:
    """Recall of the diagonal.

    Args:
        scores: `(clips, clips)`, questions by candidates; the right candidate is that with the question's number.
        classes: class of each clip, `(clips,)`; -1 if it is not known, then it is no question about classes.
        groups: group of each clip, `(clips,)`, for the intervals.

    Returns:
        `candidates`; `r1`, `r5`, `r10` with intervals and `curve`, pairs of rank and recall; with classes also
        `ceiling_r1`, ... of a perfect judge of the class that knows no more than it, and `class_at_1`, how often the
        first one is of the right class, beside `class_chance`. The chance of `r10` is 10 divided by `candidates`.
    """
    size = len(scores)
    right = np.diagonal(scores)[:, None]
    better, equal = (scores > right).sum(1), (scores == right).sum(1)

    def found(rank):  # of candidates that are tied, each is as likely to come first
        return np.clip((rank - better) / equal, 0, 1)

    result = {"candidates": size}
    for rank in RANKS:
        result[f"r{rank}"] = float(found(rank).mean())
        result[f"r{rank}_interval"] = interval(found(rank), groups=groups, seed=seed)
        result[f"chance_r{rank}"] = min(1.0, rank / size)
    ranks = sorted({rank for rank in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if rank < size} | {size})
    result["curve"] = [[rank, float(found(rank).mean())] for rank in ranks]
    known = None if classes is None else np.flatnonzero(classes >= 0)
    if known is not None and len(known):
        alike = classes[known, None] == classes
        for rank in RANKS:
            result[f"ceiling_r{rank}"] = float(np.minimum(rank / alike.sum(1), 1).mean())
        best = scores[known] == scores[known].max(1, keepdims=True)
        result["class_at_1"] = float(((best & alike).sum(1) / best.sum(1)).mean())
        result["class_chance"] = float(alike.mean())
    return result
