"""Which guidance, temperature and number of steps suit each target modality: quality against time."""

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from modeling_nano4m import Nano4MPipeline
from modeling_nano4m.sampling_nano4m import SETTINGS
from trainers.evaluation.clips import EvaluationClips
from trainers.evaluation.directions import directions, generation_quality, measure_of, quality

# Settings as good as the best but for so much are told apart by diversity, and numbers of steps by time.
TOLERANCE = 0.01
FASTER = 0.9  # of the seconds; times differ by less from run to run


def sweep_target(
    pipe: Nano4MPipeline,
    clips: EvaluationClips,
    target: str,
    guidance_scales: Sequence[float] = (1.0, 1.5, 2.0, 3.0),
    temperatures: Sequence[float] = (0.5, 0.7, 0.85, 1.0),
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """Try settings for one target modality from each single condition.

    First every guidance scale with every temperature, in the model's own number of steps; then every number of steps
    with the best of these. The model's own settings are among them, and stay the best unless others are of higher
    quality, or nearly as good and faster. All directions count alike, for a model keeps one setting for each target.
    What else it keeps, as `top_p`, `min_p` and the schedule, stays in force throughout.

    Args:
        clips: to choose by, not those that are reported on.
        steps: numbers of steps; more than the target has tokens are left out.

    Returns:
        `points`, for each setting and direction its quality, diversity and time; `best` settings for the target, which
        are `own`, the model's, unless others are better; `best_by_direction`; `measure` of quality; and `kept`, what
        else was in force.

    Raises:
        ValueError: if no clip has the target and another modality.
    """
    chosen = [
        direction
        for direction in directions((1,), pipe.tokenizers)
        if direction.target == target and len(clips.having((*direction.conditions, target)))
    ]
    if not chosen:
        raise ValueError(f"no clip to choose settings by has {target} and another modality")
    num_tokens = pipe.model.config.num_tokens_of(target)
    own = own_sampling(pipe, target)
    # Guidance and temperature are chosen with the model's own number.
    steps = sorted({own["num_inference_steps"], *(number for number in steps if number <= num_tokens)})
    points: list[dict] = []
    measures: set[str] = set()

    def try_settings(stage: str, settings: list[dict]) -> None:
        for sampling in tqdm(settings, desc=f"sweep {stage} of {target}"):
            for direction in chosen:
                numbers = clips.having((*direction.conditions, target))
                result, _ = generation_quality(pipe, clips, direction, numbers, batch_size, seed, **sampling)
                point = {"stage": stage, "direction": direction.name, **sampling, "quality": quality(result)}
                point["diversity"] = result["diversity"]["relative"]
                measures.add(measure_of(result))
                points.append({**point, "seconds_per_sample": result["seconds_per_sample"]})

    grid = [
        {"guidance_scale": float(scale), "temperature": float(temperature)}
        for scale in guidance_scales
        for temperature in temperatures
    ]
    if (own_pair := {name: own[name] for name in ("guidance_scale", "temperature")}) not in grid:
        grid.append(own_pair)
    try_settings("guidance and temperature", grid)
    best = best_settings(points, grid, by="diversity")
    stepped = [{**best, "num_inference_steps": int(number)} for number in steps]
    try_settings("steps", stepped)
    every = [own, *stepped]
    if own in stepped:
        every = stepped
    else:
        try_settings("own", [own])
    best = best_settings(points, every, by="seconds_per_sample")
    if mean_of(points, best, "quality") <= mean_of(points, own, "quality"):
        seconds, own_seconds = (mean_of(points, settings, "seconds_per_sample") for settings in (best, own))
        best = best if seconds < FASTER * own_seconds else own
    kept = pipe.model.modality_defaults.get(target, {})
    return {
        "measure": " or ".join(sorted(measures)),
        "own": own,
        "best": best,
        "kept": {name: value for name, value in kept.items() if name not in own},
        "best_by_direction": {
            direction.name: best_settings(
                [point for point in points if point["direction"] == direction.name], [*grid, *every], by="diversity"
            )
            for direction in chosen
        },
        "points": points,
    }


def own_sampling(pipe: Nano4MPipeline, target: str) -> dict:
    """The model's own `guidance_scale`, `temperature` and `num_inference_steps` for a target."""
    own = pipe.model.modality_defaults.get(target, {})
    defaults = {name: SETTINGS[name][0] for name in ("guidance_scale", "temperature")}
    defaults["num_inference_steps"] = pipe.model.default_num_steps(target)
    return {name: default if own.get(name) is None else own[name] for name, default in defaults.items()}


def best_settings(points: list[dict], settings: list[dict], by: str) -> dict:
    """The settings of the highest mean quality over all directions.

    Args:
        points: see `sweep_target`.
        settings: those to choose from.
        by: what decides among settings nearly as good as the best: "diversity", the most, or "seconds_per_sample",
            the least.
    """
    qualities = [mean_of(points, sampling, "quality") for sampling in settings]
    good = [s for s, value in zip(settings, qualities, strict=True) if value >= max(qualities) - TOLERANCE]
    sign = -1 if by == "seconds_per_sample" else 1
    return max(good, key=lambda sampling: sign * mean_of(points, sampling, by))


def mean_of(points: list[dict], sampling: dict, field: str) -> float:
    """Mean of a field of the points with some settings, in the model's own number of steps if they name none."""
    of_these = [point for point in points if {name: point.get(name) for name in sampling} == sampling]
    if "num_inference_steps" not in sampling:
        of_these = [point for point in of_these if "num_inference_steps" not in point]
    return float(np.mean([0.0 if point[field] is None else point[field] for point in of_these]))


def save_best(pipe: Nano4MPipeline, best: dict[str, dict], folder: str) -> None:
    """Make settings the model's own for each target, in memory and in the pipeline's folder; others stay.

    Args:
        best: for each target what `sweep_target` called `best`.
        folder: of the pipeline.
    """
    defaults = {name: dict(settings) for name, settings in pipe.model.modality_defaults.items()}
    for target, settings in best.items():
        defaults[target] = {**defaults.get(target, {}), **settings}
    pipe.model.set_modality_defaults(defaults)
    pipe.model.generation_config.save_pretrained(f"{folder}/model")
