"""Which clips a model was trained on, and which may therefore tell how good it is."""

from pathlib import Path

import numpy as np

from trainers.training_data import FILE, read_training_data


def check_split(folder: str | Path, clips, split: str, allow_training_split: bool = False) -> str:
    """See that a model was not trained on a split of prepared clips.

    Args:
        folder: of the pipeline.
        clips: `DatasetDict` of prepared clips.
        split: its split to evaluate on.
        allow_training_split: go on even if it was.

    Returns:
        One sentence on what is known, for the results.

    Raises:
        ValueError: if there is no such split, it was trained on, or, where the model does not say what it was trained
            on, it is called `train`.
    """
    if split not in clips:
        raise ValueError(f"split {split!r}: the data set has only {', '.join(clips)}; choose one with --split")
    trained_on = read_training_data(folder)
    if trained_on is not None:
        seen = clips[split]._fingerprint in {source["fingerprint"] for source in trained_on}
        known = f"the model was {'' if seen else 'not '}trained on these clips"
    else:
        seen = split == "train"
        known = f"the model does not say what it was trained on ({FILE} is missing)"
    if seen and not allow_training_split:
        raise ValueError(
            f"split {split!r}: {known}, so scores would show what it remembers, not what it can do; choose another "
            "--split, or say --allow_training_split"
        )
    return known


def choose_rows(rows, number: int, seed: int = 0):
    """At most `number` rows, drawn at random, in their own order."""
    if number >= len(rows):
        return rows
    return rows.select(sorted(np.random.default_rng(seed).permutation(len(rows))[:number]))


def tuning_rows(clips, split: str, reported, number: int, seed: int = 0) -> tuple[object, str]:
    """Rows to choose settings by, none of which is reported: the rest of the split, or else the training split.

    Args:
        clips: `DatasetDict` of prepared clips.
        split: the one that `reported` is from.
        reported: the rows to report on.
        number: how many at most.

    Returns:
        The rows, and a phrase on where they are from.

    Raises:
        ValueError: if all rows there are are reported on.
    """
    taken = set(reported["video"])  # other parts of a reported video are too much like it
    rest = np.array([i for i, video in enumerate(clips[split]["video"]) if video not in taken], dtype=int)
    if len(rest) >= number or (len(rest) and ("train" not in clips or split == "train")):
        rows = choose_rows(clips[split].select(rest), number, seed + 1)
        return rows, f"{len(rows)} clips of the {split} split that are not reported on"
    if "train" in clips and split != "train":
        rows = choose_rows(clips["train"], number, seed + 1)
        return rows, f"{len(rows)} clips of the training split"
    raise ValueError(f"no clip is left to choose settings by: all {len(reported)} are reported on; lower num_samples")
