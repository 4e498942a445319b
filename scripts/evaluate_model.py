"""Measure a model in every direction on clips it was not trained on.

evaluate_model.py --model MODEL --dataset OUT --output_dir RESULTS [--judge shapes_world|grid|FOLDER|FILE.py:Name]

Writes RESULTS/results.json after every direction, so that an interrupted run goes on where it was, and results.html.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from arguments import parse_args
from tqdm.auto import tqdm

from dataset_scripts.prepare import load_clips as load_prepared
from modeling_nano4m import Nano4MPipeline
from tokenizers_4m import MODALITIES
from trainers.evaluation import (
    Results,
    check_split,
    choose_rows,
    directions,
    evaluate_direction,
    fingerprint,
    load_clips,
    load_judge,
    sample_rows,
    save_best,
    sweep_target,
    table,
    tuning_rows,
    write_page,
)


@dataclass
class EvaluateArguments:
    model: str = field(metadata={"help": "pipeline folder, the MODEL of run_training.py"})
    dataset: str = field(metadata={"help": "clips, the OUT of prepare_dataset.py"})
    output_dir: str = field(metadata={"help": "where results.json and results.html go"})
    judge: str | None = field(
        default=None,
        metadata={"help": "shapes_world, grid, the folder of an AVDigitsJudge, or FILE.py:Name for your own"},
    )
    split: str = field(default="validation", metadata={"help": "of the clips"})
    allow_training_split: bool = field(default=False, metadata={"help": "also if the model was trained on it"})
    directions: list[str] = field(
        default_factory=lambda: [direction.name for direction in directions()],
        metadata={"help": "such as audio_to_text, image_and_audio_to_text, nothing_to_image; all of them by default"},
    )
    num_samples: int = field(default=200, metadata={"help": "clips to generate for, drawn at random"})
    num_candidates: int = field(default=200, metadata={"help": "clips among which to retrieve; 0 leaves it out"})
    batch_size: int = field(default=64, metadata={"help": "samples at once"})
    seed: int = field(default=0, metadata={"help": "of the choice of clips, generation, shuffling and bootstrap"})
    sweep: bool = field(default=False, metadata={"help": "try guidance, temperatures and steps on other clips first"})
    sweep_samples: int = field(default=100, metadata={"help": "clips to try them on"})
    sweep_guidance: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 3.0])
    sweep_temperatures: list[float] = field(default_factory=lambda: [0.5, 0.7, 0.85, 1.0])
    sweep_steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    save_best: bool = field(
        default=False, metadata={"help": "with --sweep: make the best settings the model's own, and report with them"}
    )


def main(argv: list[str] | None = None) -> dict:
    (args,) = parse_args(EvaluateArguments, description=__doc__, argv=argv)
    try:
        return evaluate(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def evaluate(args: EvaluateArguments) -> dict:
    chosen = [direction for direction in directions() if direction.name in args.directions]
    for name in set(args.directions) - {direction.name for direction in chosen}:
        raise ValueError(f"directions: there is no {name!r}; known are {', '.join(d.name for d in directions())}")
    for name in ("num_samples", "batch_size", "sweep_samples"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}: must be at least 1")
    if args.save_best and not args.sweep:
        raise ValueError("save_best: there is nothing to save without --sweep")
    data = load_prepared(args.dataset)
    known = check_split(args.model, data, args.split, args.allow_training_split)
    judge = load_judge(args.judge) if args.judge else None
    pipe = Nano4MPipeline.from_pretrained(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    rows = choose_rows(data[args.split], args.num_samples, args.seed)
    print(f"{len(rows)} clips of the {args.split} split; {known}")

    out = Path(args.output_dir)
    identity = {
        "model": fingerprint(args.model),
        "data": data[args.split]._fingerprint,
        "judge": None if judge is None else [args.judge, fingerprint(args.judge.rpartition(":")[0] or args.judge)],
        **{name: getattr(args, name) for name in ("split", "num_samples", "num_candidates", "seed")},
    }
    results = Results(out / "results.json", identity)
    results.values["about"] = {"clips": len(rows), "known": known, "judge": args.judge}
    if args.sweep:
        best = sweep(args, pipe, data, rows, judge, results, [direction.target for direction in chosen])
        if args.save_best:
            save_best(pipe, best, args.model)
    clips = load_clips(pipe, rows, judge, args.batch_size)
    samples = out / "samples"
    for direction in tqdm(chosen, desc="directions"):
        settings = own_settings(pipe, direction.target)
        if results.get("directions", direction.name, settings):
            continue
        result, numbers, media = evaluate_direction(
            pipe, clips, direction, args.batch_size, args.seed, args.num_candidates
        )
        if media:
            samples.mkdir(parents=True, exist_ok=True)
            shown = sample_rows(clips, direction, numbers, media, pipe.audio_tokenizer.config.sampling_rate)
            (samples / f"{direction.name}.json").write_text(json.dumps(shown), encoding="utf-8")
        results.put("directions", direction.name, settings, result)
    # Of former runs only what was made with today's settings is shown.
    results.keep("directions", {d.name: own_settings(pipe, d.target) for d in directions()})
    print(table(results.values["directions"]))
    page = write_page(out / "results.html", results.values, samples, args.model)
    print(f"{results.path}, {page}")
    return results.values


def own_settings(pipe: Nano4MPipeline, target: str) -> dict:
    """How the model itself generates a modality."""
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return {"scheduler": scheduler, **pipe.model.modality_defaults.get(target, {})}


def sweep(
    args: EvaluateArguments, pipe: Nano4MPipeline, data, reported, judge, results: Results, targets: list[str]
) -> dict[str, dict]:
    """The best settings of those targets that clips have, from clips that are not reported on."""
    rows, phrase = tuning_rows(data, args.split, reported, args.sweep_samples, args.seed)
    print(f"settings are chosen by {phrase}")
    grids = {
        "guidance_scales": args.sweep_guidance,
        "temperatures": args.sweep_temperatures,
        "steps": args.sweep_steps,
    }
    clips = load_clips(pipe, rows, judge, args.batch_size)
    best = {}
    for target in sorted(set(targets)):
        if not any(len(clips.having((target, other))) for other in MODALITIES if other != target):
            print(f"{target}: no clip has it and another modality, its settings stay as they are")
            continue
        # What is swept must not be in it: it changes when the best is saved.
        own = {k: v for k, v in own_settings(pipe, target).items() if k in ("scheduler", "top_k", "top_p", "min_p")}
        made_with = {**grids, "clips": rows._fingerprint, "own": own}
        part = results.get("sweep", target, made_with)
        if part is None:
            part = sweep_target(pipe, clips, target, **grids, batch_size=args.batch_size, seed=args.seed)
            part = results.put("sweep", target, made_with, {"clips": phrase, **part})
        best[target] = part["best"]
        print(f"{target}: {json.dumps(best[target])}")
    return best


if __name__ == "__main__":
    main()
