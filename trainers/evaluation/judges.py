"""Judges: what a clip means, and what can be read from a generated medium.

A judge is any object with two methods:

    truths(rows) -> list[dict[str, str] | None]
        the attributes of prepared rows, e.g. [{"digit": "three"}, ...]; None for a row where they are not known, which
        is then left out of what is judged
    read(modality, media, sampling_rate) -> list[dict[str, str | None]]
        the same attributes as read from images (lists of PIL frames), waveforms (float32 arrays at sampling_rate Hz,
        which is None for others) or strings; None for what cannot be told

If its attributes are the words of a sentence, one each, it says so by `reads_words = True`.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from dataset_scripts import grid_judges, shapes_judges
from dataset_scripts.av_digits_judges import AVDigitsJudge
from dataset_scripts.shapes_world import attributes_from_name
from trainers.evaluation.results import fingerprint, local_folder
from trainers.own_code import load_own_code, names_own_code

BUILT_IN = {"shapes_world": shapes_judges.__file__, "grid": grid_judges.__file__}


class ShapesWorldJudge:
    """Shape, colour and motion of ShapesWorld clips, read by the analytic judges that know how they are rendered."""

    def truths(self, rows) -> list[dict[str, str]]:
        return [attributes_from_name(name) for name in rows["video"]]

    def read(self, modality: str, media: list, sampling_rate: int | None = None) -> list[dict[str, str | None]]:
        return [shapes_judges.judge(modality, medium, sampling_rate) for medium in media]


def load_judge(name: str):
    """The judge `shapes_world` or `grid`, an `AVDigitsJudge` (folder or name on the Hub), or your own, `FILE.py:Name`.

    Raises:
        ValueError: if there is no such judge, it lacks `truths` or `read`, or a package that it needs is missing.
    """
    if name == "shapes_world":
        return ShapesWorldJudge()
    if name == "grid":
        try:
            return grid_judges.GridJudge()
        except ImportError as error:
            raise ValueError(f"judge grid: {error}") from error
    if names_own_code(name):
        return load_own_code("judge", name, "truths", "read")
    if Path(folder := local_folder(name)).is_dir():
        try:
            return AVDigitsJudge.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ValueError(f"judge {name}: this folder holds no AVDigitsJudge ({error})") from error
    raise ValueError(f"judge {name!r}: give shapes_world, grid, the folder of a saved AVDigitsJudge, or FILE.py:Name")


def judge_identity(name: str) -> str:
    """What a judge is, wherever it lies: the hash of its weights or of the code that reads.

    Args:
        name: as for `load_judge`.
    """
    if name in BUILT_IN:
        return f"{name} {fingerprint(BUILT_IN[name])}"
    path, _, attribute = name.rpartition(":")
    return f"{attribute} {fingerprint(path)}" if names_own_code(name) else fingerprint(name)


def truths_of(judge, rows) -> list[dict[str, str] | None]:
    """What the judge knows of each row, None of some.

    Raises:
        ValueError: it answers not for each row, knows none, or not the same attributes of all that it knows.
    """
    truths = judge.truths(rows)
    if len(truths) != len(rows):
        raise ValueError(f"judge {type(judge).__name__}: truths() gave {len(truths)} for {len(rows)} rows")
    known = [truth for truth in truths if truth is not None]
    if not known:
        raise ValueError(f"judge {type(judge).__name__}: truths() knows none of the {len(rows)} rows")
    if any(not truth or set(truth) != set(known[0]) for truth in known):
        raise ValueError(f"judge {type(judge).__name__}: truths() must name the same attributes of every row")
    return truths


def right_attributes(
    judge, modality: str, media: list, sampling_rate: int | None, truths: list[dict[str, str]]
) -> np.ndarray:
    """`matches` of what the judge reads in media."""
    return matches(read(judge, modality, media, sampling_rate), truths)


def matches(found: list[dict[str, str | None]], truths: list[dict[str, str]]) -> np.ndarray:
    """Which attributes were read as they truly are, bool `(clips, attributes)`.

    What cannot be told, a None or a missing entry, is not right.
    """
    pairs = zip(found, truths, strict=True)
    return np.array([[got.get(name) == value for name, value in truth.items()] for got, truth in pairs], dtype=bool)


def read(judge, modality: str, media: list, sampling_rate: int | None) -> list[dict[str, str | None]]:
    """`judge.read`, with {} where it gave None; ValueError if it does not answer for each medium."""
    found = judge.read(modality, media, sampling_rate if modality == "audio" else None)
    if found is None or len(found) != len(media):
        given = "None" if found is None else f"{len(found)} answers"
        raise ValueError(f"judge {type(judge).__name__}: read({modality!r}) gave {given} for {len(media)} media")
    return [got or {} for got in found]


def chance(truths: list[dict[str, str]]) -> float:
    """The share of attributes right if one guessed each value as often as it occurs: 1/n of n equally frequent."""
    shares = [
        sum((count / len(truths)) ** 2 for count in Counter(truth[name] for truth in truths).values())
        for name in truths[0]
    ]
    return float(np.mean(shares))


def classes_of(truths: list[dict[str, str] | None]) -> np.ndarray:
    """Number of the class of each clip, int `(clips,)`; clips of one class have all attributes in common.

    It is -1 where the truth is not known.
    """
    numbers: dict[tuple, int] = {}
    return np.array(
        [-1 if truth is None else numbers.setdefault(tuple(sorted(truth.items())), len(numbers)) for truth in truths],
        dtype=int,
    )
