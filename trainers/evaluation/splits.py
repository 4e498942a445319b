"""Which clips a model was trained on, which may therefore tell how good it is, and which belong together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.training_data import FILE, read_training_data, source_hashes, sources_of


def check_split(folder: str | Path, clips, split: str, allow_training_split: bool = False) -> str:
    """See that a model was not trained on the sources of a split of prepared clips.

    Args:
        folder: of the pipeline.
        clips: `DatasetDict` of prepared clips.
        split: its split to evaluate on.
        allow_training_split: go on even if it was.

    Returns:
        One sentence on what was compared, for the results.

    Raises:
        ValueError: if there is no such split, one of its rows shares a source with those trained on, or, where it is
            not known what the model was trained on, it is called `train`.
    """
    if split not in clips:
        raise ValueError(f"split {split!r}: the data set has only {', '.join(clips)}; choose one with --split")
    trained_on, all_known = read_training_data(folder)
    videos = clips[split]["video"]
    trained_on = set(trained_on.tolist())
    rows = sum(not trained_on.isdisjoint(source_hashes([video]).tolist()) for video in videos)
    if rows:
        seen = True
        known = (
            f"{rows} of its {len(videos)} rows ({rows / len(videos):.1%}) share a source, by name, with what the "
            "model was trained on"
        )
    elif all_known:
        seen = False
        known = f"none of its {len(videos)} rows shares a source, by name, with what the model was trained on"
    else:
        seen = split == "train"
        known = f"it is not known whether the model was trained on it: {FILE} does not name all sources"
    if seen and not allow_training_split:
        raise ValueError(
            f"split {split!r}: {known}, so scores would show what it remembers, not what it can do; choose another "
            "--split, or say --allow_training_split"
        )
    return known


def groups_of(videos: Sequence[str]) -> np.ndarray:
    """Number of the group of each row, int `(rows,)`; rows that share a source are of one group.

    So are rows that do so through others: groups have no source in common. Of AVDigits, where each picture of
    validation is used once, they are the recordings.
    """
    above = list(range(len(videos)))  # a forest: each row points to one of its group, the first one to itself

    def first(row: int) -> int:
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    rows_with: dict[str, int] = {}
    for row, video in enumerate(videos):
        for source in sources_of(video):
            above[first(row)] = first(rows_with.setdefault(source, row))
    return np.unique([first(row) for row in range(len(videos))], return_inverse=True)[1]


def choose_rows(rows, number: int, seed: int = 0):
    """At most `number` rows, drawn at random, in their own order."""
    if number >= len(rows):
        return rows
    return rows.select(sorted(np.random.default_rng(seed).permutation(len(rows))[:number]))


def divide_rows(rows, num_reported: int, num_tuning: int, seed: int = 0) -> tuple[object, object]:
    """Rows to report on and rows to choose settings by, which have no source in common.

    The groups of `groups_of` are divided in proportion to the numbers asked for, then rows are drawn of each part.

    Args:
        rows: of prepared clips.
        num_reported, num_tuning: how many at most.

    Raises:
        ValueError: if all rows are of one group.
    """
    groups = groups_of(rows["video"])
    count = groups.max() + 1 if len(groups) else 0
    if count < 2:
        raise ValueError(
            f"sweep: the {len(rows)} clips share their sources, so none can be kept to choose settings by"
        )
    number = min(max(round(count * num_tuning / (num_reported + num_tuning)), 1), count - 1)
    for_tuning = np.isin(groups, np.random.default_rng(seed).permutation(count)[:number])
    reported, tuning = (rows.select(np.flatnonzero(part)) for part in (~for_tuning, for_tuning))
    return choose_rows(reported, num_reported, seed), choose_rows(tuning, num_tuning, seed + 1)
