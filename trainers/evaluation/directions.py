"""One direction of a model, from some modalities to another: everything that is measured of it.

Beside each figure stands what tells whether it is a good one: the judge's accuracy on real media, the same with the
conditions of other clips, chance, an interval.
"""

import time
from collections.abc import Iterable
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
from trainers.evaluation.judges import chance, classes_of, matches, read, right_attributes
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


def directions(
    numbers_of_conditions: tuple[int, ...] = (1, 2, 0), modalities: Iterable[str] = MODALITIES
) -> list[Direction]:
    """All directions among some modalities with so many conditions: single ones, pairs, none."""
    modalities = list(modalities)
    return [
        Direction(conditions, target)
        for number in numbers_of_conditions
        for target in modalities
        for conditions in combinations([name for name in modalities if name != target], number)
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
        judged = known_truths(clips, numbers)
        truths = [clips.truths[i] for i in numbers[judged]]
        groups = clips.groups[numbers[judged]]
        result["chance"] = chance(truths)
        on_real = matches([clips.readings(target)[i] for i in numbers[judged]], truths).mean(1)
        result["judge_on_real"] = mean(on_real)
        if on_real.any():
            result |= estimate("relative_accuracy", result["by_clip"]["values"], on_real, groups, seed)
        if donors is not None:
            media_of_others, rate, _ = generate(pipe, clips, direction, donors, batch_size, seed)
            right = right_attributes(clips.judge, target, [media_of_others[i] for i in judged], rate, truths)
            result |= estimate("shuffled", right.mean(1), groups=groups, seed=seed)
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
    groups = clips.groups[numbers]
    result = {"clips": len(numbers), "sources": len(np.unique(groups)), "seconds_per_sample": seconds}
    judged = known_truths(clips, numbers) if clips.can_be_judged(target) else []
    if len(judged):
        result |= judged_quality(clips, direction, numbers[judged], [media[i] for i in judged], rate, seed)
        if len(judged) < len(numbers):
            result["without_truth"] = len(numbers) - len(judged)
    true = [clips.media[target][i] for i in numbers]
    if target == "text":
        if direction.conditions:
            errors, correct = text_errors(true, media, groups, seed)
            result |= errors
            result.setdefault("by_clip", {**correct, "numbers": numbers.tolist()})
        among_made, among_true = text_distances(media), text_distances(true)
    else:
        size, ends = media[0][0].size if target == "image" else None, clips.seconds[numbers]
        made = features(target, media, rate, size, ends)
        wanted = features(target, true, clips.sampling_rate, size, ends)
        among_made, among_true = distances(target, made, made), distances(target, wanted, wanted)
        if direction.conditions and rate in (None, clips.sampling_rate):
            closer = closer_to_true(distances(target, made, wanted), groups)
            if closer is not None:
                result |= estimate("closer_to_true", closer, groups=groups, seed=seed)
                correct = {"measure": "closer to true", "values": closer.tolist()}
                result.setdefault("by_clip", {**correct, "numbers": numbers.tolist()})
    # What is made from nothing is of no class, and compared with real media of all.
    of_class = len(judged) and direction.conditions
    classes = classes_of([clips.truths[i] for i in numbers]) if of_class else np.zeros(len(numbers), dtype=int)
    within = "class" if of_class else "all"
    if spread(among_true, classes, groups) is None:  # each clip may be of its own class, as sentences are
        classes, within = np.zeros_like(classes), "all"
    made_and_true = (spread(between, classes, groups) for between in (among_made, among_true))
    result["diversity"] = {"within": within, **relative_diversity(*made_and_true)}
    return result, media


def known_truths(clips: EvaluationClips, numbers: np.ndarray) -> np.ndarray:
    """Which of some clips the judge knows the truth of: places in `numbers`."""
    return np.flatnonzero([clips.truths is not None and clips.truths[i] is not None for i in numbers])


def judged_quality(
    clips: EvaluationClips, direction: Direction, numbers: np.ndarray, media: list, rate: int | None, seed: int
) -> dict:
    """What the judge says of what was generated for some clips, whose truths are known."""
    target, groups = direction.target, clips.groups[numbers]
    truths = [clips.truths[i] for i in numbers]
    if not direction.conditions:
        found = read(clips.judge, target, media, rate)
        readable = [np.mean([got.get(name) is not None for name in truths[0]]) for got in found]
        return estimate("readable", np.array(readable), groups=groups, seed=seed)
    right = right_attributes(clips.judge, target, media, rate, truths)
    share = right.mean(1)
    result = estimate("accuracy", share, groups=groups, seed=seed)
    if target != "text" and getattr(clips.judge, "reads_words", False):
        result |= estimate("word_error", 1 - share, groups=groups, seed=seed)
    if len(truths[0]) > 1:
        result |= estimate("all_right", right.all(1), groups=groups, seed=seed)
        result["by_attribute"] = {name: float(right[:, i].mean()) for i, name in enumerate(truths[0])}
    result["by_clip"] = {"measure": "accuracy", "values": share.tolist(), "numbers": numbers.tolist()}
    return result


def quality(result: dict) -> float:
    """The figure, from 0 to 1, by which settings are chosen: judged accuracy, else words right, else closeness."""
    by_clip = result.get("by_clip")
    return mean(by_clip["values"], by_clip.get("weights")) if by_clip else 0.0


def measure_of(result: dict) -> str:
    """Which figure `quality` is."""
    return result["by_clip"]["measure"] if "by_clip" in result else "closer to true"


def text_errors(
    true: list[str], generated: list[str], groups: np.ndarray | None = None, seed: int = 0
) -> tuple[dict, dict]:
    """`word_error` and `character_error` with intervals: edits for each true one, case aside (jiwer).

    Returns:
        These, and words right less words inserted of each clip, as `by_clip` of results.
    """
    pairs = [(a.lower().strip(), b.lower().strip()) for a, b in zip(true, generated, strict=True)]
    result, words = {}, None
    for name, process in (("word_error", jiwer.process_words), ("character_error", jiwer.process_characters)):
        found = [process([a], [b]) for a, b in pairs]
        edits = np.array([one.substitutions + one.deletions + one.insertions for one in found])
        lengths = np.array([one.hits + one.substitutions + one.deletions for one in found])
        result |= estimate(name, edits, lengths, groups, seed)
        words = words or {
            "measure": "1 - word error",
            "values": (lengths - edits).tolist(),
            "weights": lengths.tolist(),
        }
    return result, words


def gains(results: dict[str, dict], groups: np.ndarray, seed: int = 0) -> dict[str, dict]:
    """How much better each pair of conditions is than one of them alone, clip by clip.

    Args:
        results: those of directions, by name. A pair is compared with the better single one, of those that are there
            and measured by the same.
        groups: of all clips, `(clips,)`.

    Returns:
        For each pair that can be compared its `over`, the single direction; the `measure`; `clips` that have all; and
        `gain`, the difference of the measure, with its interval.
    """
    found = {}
    for pair in directions((2,)):
        own = results.get(pair.name, {}).get("by_clip")
        names = [Direction((condition,), pair.target).name for condition in pair.conditions]
        singles = {name: results.get(name, {}).get("by_clip") for name in names}
        singles = {name: part for name, part in singles.items() if part and own and part["measure"] == own["measure"]}
        if not singles:
            continue
        common = np.array(sorted(set(own["numbers"]).intersection(*(part["numbers"] for part in singles.values()))))
        if not len(common):
            continue
        values = {name: _of_clips(part, "values", common) for name, part in {**singles, pair.name: own}.items()}
        weights = _of_clips(own, "weights", common) if "weights" in own else None
        _, over = max((values[name].sum(), name) for name in singles)
        found[pair.name] = {
            "over": over,
            "measure": own["measure"],
            "clips": len(common),
            **estimate("gain", values[pair.name] - values[over], weights, groups[common], seed),
        }
    return found


def _of_clips(by_clip: dict, field: str, numbers: np.ndarray) -> np.ndarray:
    """What `by_clip` holds of some clips, which it must have."""
    return np.array(by_clip[field])[np.searchsorted(by_clip["numbers"], numbers)]
