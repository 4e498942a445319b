"""One direction of a model, from some modalities to another: everything that is measured of it.

Beside each figure stands what tells whether it is a good one: the judge's accuracy on real media, the same with the
conditions of other clips, chance, an interval.
"""

import time
from dataclasses import dataclass
from itertools import combinations

import jiwer
import numpy as np

from modeling_nano4m import Nano4MPipeline
from tokenizers_4m import MODALITIES
from trainers.evaluation.bootstrap import estimate, mean
from trainers.evaluation.clips import EvaluationClips
from trainers.evaluation.diversity import (
    closer_to_true,
    distances,
    features,
    relative_diversity,
    spread,
    text_distances,
)
from trainers.evaluation.judges import chance, classes_of, read, right_attributes
from trainers.evaluation.likelihood import likelihood
from trainers.evaluation.retrieval import retrieval


@dataclass(frozen=True)
class Direction:
    """`conditions` are given, none of them if empty, and `target` is generated."""

    conditions: tuple[str, ...]
    target: str

    @property
    def name(self) -> str:
        """Such as "image_and_audio_to_text"; "nothing_to_text" if unconditional."""
        return f"{'_and_'.join(self.conditions) or 'nothing'}_to_{self.target}"


def directions(numbers_of_conditions: tuple[int, ...] = (1, 2, 0)) -> list[Direction]:
    """All directions with so many conditions: single ones, pairs, none."""
    return [
        Direction(conditions, target)
        for number in numbers_of_conditions
        for target in MODALITIES
        for conditions in combinations([name for name in MODALITIES if name != target], number)
    ]


def others(number: int, seed: int = 0) -> np.ndarray | None:
    """For each of some clips another one at random, never itself; None if there is no other."""
    if number < 2:
        return None
    order = np.random.default_rng(seed).permutation(number)
    result = np.empty(number, dtype=int)
    result[order] = np.roll(order, 1)
    return result


def generate(
    pipe: Nano4MPipeline,
    clips: EvaluationClips,
    direction: Direction,
    numbers: np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
    **sampling,
) -> tuple[list, int | None, float]:
    """Generate from the conditions of some clips; returns media, their sampling rate and seconds per sample."""
    given = {name: clips.inputs(name, numbers) for name in direction.conditions}
    number = {} if given else {"num_samples": len(numbers)}
    started = time.perf_counter()
    output = pipe(**given, **number, target=direction.target, seed=seed, batch_size=batch_size, **sampling)
    seconds = (time.perf_counter() - started) / len(numbers)
    return output[f"{direction.target}s"], output.sampling_rate, seconds


def evaluate_direction(
    pipe: Nano4MPipeline,
    clips: EvaluationClips,
    direction: Direction,
    batch_size: int = 64,
    seed: int = 0,
    num_candidates: int = 200,
) -> tuple[dict, np.ndarray, list]:
    """Everything there is to say on one direction; the page (`page.html.j2`) explains the fields.

    Args:
        num_candidates: clips among which to retrieve; 0 leaves retrieval out.

    Returns:
        The results, for which clips (their numbers), and what was generated for each. Where no clip has all the
        modalities, `{"clips": 0, "skipped": why}`.
    """
    target = direction.target
    numbers = clips.having((*direction.conditions, target))
    if not len(numbers):
        lacking = " and ".join((*direction.conditions, target))
        return {"clips": 0, "skipped": f"no clip has {lacking}"}, numbers, []
    shuffle = others(len(numbers), seed)
    donors = None if shuffle is None else numbers[shuffle]
    result, media = generation_quality(pipe, clips, direction, numbers, batch_size, seed)
    if "accuracy" in result:
        truths = [clips.truths[i] for i in numbers]
        true = [clips.media[target][i] for i in numbers]
        result["chance"] = chance(truths)
        right_on_real = right_attributes(clips.judge, target, true, clips.sampling_rate, truths)
        result["judge_on_real"] = mean(right_on_real.mean(1))
        if result["judge_on_real"]:
            result["relative_accuracy"] = result["accuracy"] / result["judge_on_real"]
        if donors is not None:
            media_of_others, rate, _ = generate(pipe, clips, direction, donors, batch_size, seed)
            right = right_attributes(clips.judge, target, media_of_others, rate, truths)
            result |= estimate("shuffled", right.mean(1), seed=seed)
    result |= likelihood(pipe, clips, direction.conditions, target, numbers, donors, batch_size, seed)
    if direction.conditions and num_candidates and len(numbers) > 1:
        few = np.sort(np.random.default_rng(seed).permutation(numbers)[:num_candidates])
        classes = None if clips.truths is None else classes_of([clips.truths[i] for i in few])
        result["retrieval"] = retrieval(pipe, clips, direction.conditions, target, few, classes, batch_size, seed)
    return result, numbers, media


def generation_quality(
    pipe: Nano4MPipeline,
    clips: EvaluationClips,
    direction: Direction,
    numbers: np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
    **sampling,
) -> tuple[dict, list]:
    """What can be told of generated media, given `sampling` settings or the model's own; and these media."""
    target = direction.target
    media, rate, seconds = generate(pipe, clips, direction, numbers, batch_size, seed, **sampling)
    result = {"clips": len(numbers), "seconds_per_sample": seconds}
    truths = None if clips.truths is None else [clips.truths[i] for i in numbers]
    true = [clips.media[target][i] for i in numbers]
    if truths is not None and not any(read(clips.judge, target, true[:8], clips.sampling_rate)):
        truths = None  # of this modality the judge reads nothing, even where it is real
    if truths is not None and direction.conditions:
        right = right_attributes(clips.judge, target, media, rate, truths)
        result |= estimate("accuracy", right.mean(1), seed=seed)
        if len(truths[0]) > 1:
            result |= estimate("all_right", right.all(1), seed=seed)
            result["by_attribute"] = {name: float(right[:, i].mean()) for i, name in enumerate(truths[0])}
    elif truths is not None:
        found = read(clips.judge, target, media, rate)
        readable = [np.mean([got.get(name) is not None for name in truths[0]]) for got in found]
        result |= estimate("readable", np.array(readable), seed=seed)
    if target == "text":
        if direction.conditions:
            result |= text_errors(true, media, seed)
        among_made, among_true = text_distances(media), text_distances(true)
    else:
        size = media[0][0].size if target == "image" else None
        made, wanted = features(target, media, rate, size), features(target, true, clips.sampling_rate, size)
        among_made, among_true = distances(target, made, made), distances(target, wanted, wanted)
        closer = closer_to_true(distances(target, made, wanted))
        if direction.conditions and closer is not None and rate in (None, clips.sampling_rate):
            result |= estimate("closer_to_true", closer, seed=seed)
    # What is made from nothing is of no class, and compared with real media of all.
    of_class = truths is not None and direction.conditions
    classes = classes_of(truths) if of_class else np.zeros(len(numbers), dtype=int)
    result["diversity"] = relative_diversity(spread(among_made, classes), spread(among_true, classes))
    return result, media


def quality(result: dict) -> float:
    """The figure, from 0 to 1, by which settings are chosen: judged accuracy, else words right, else closeness."""
    name = measure_of(result)
    return 1 - result["word_error"] if name == "1 - word error" else result.get(name.replace(" ", "_"), 0.0)


def measure_of(result: dict) -> str:
    """Which figure `quality` is."""
    if "accuracy" in result:
        return "accuracy"
    return "1 - word error" if "word_error" in result else "closer to true"


def text_errors(true: list[str], generated: list[str], seed: int = 0) -> dict:
    """`word_error` and `character_error` with intervals: edits for each true one, case aside (jiwer)."""
    pairs = [(a.lower().strip(), b.lower().strip()) for a, b in zip(true, generated, strict=True)]
    result = {}
    for name, process in (("word_error", jiwer.process_words), ("character_error", jiwer.process_characters)):
        found = [process([a], [b]) for a, b in pairs]
        edits = np.array([one.substitutions + one.deletions + one.insertions for one in found])
        lengths = np.array([one.hits + one.substitutions + one.deletions for one in found])
        result |= estimate(name, edits, lengths, seed)
    return result
